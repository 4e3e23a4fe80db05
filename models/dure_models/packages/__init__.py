"""Model packages that are not part of Dure: what a wheel may hold, and how its code comes onto the import path.

`dure_protocols.model_package` is the file, `wheel.checked_files` what is let in. Nothing here imports a model's code.
"""

from dure_models.packages.imports import check_free_names, on_import_path, unpacked, write_files
from dure_models.packages.wheel import WheelError, checked_files, sources_of

__all__ = ["WheelError", "check_free_names", "checked_files", "on_import_path", "sources_of", "unpacked", "write_files"]
