"""The errors of the firm's data.

    dure_protocols.errors.DureError
    └── DataError
        ├── DataMappingError      data.toml is missing, not valid, or does not go with the contract
        ├── DataSourceError       a data file is missing, cannot be read, or lacks a column that data.toml names
        └── TooFewRowsError       the data fit, and are too few for the policy or to validate on

What a readable table lacks against the contract is `dure_models.errors.DataContractError`. All of them may describe the
data and never leave the firm.
"""

from dure_protocols.errors import DureError


class DataError(DureError):
    """Base of what can be wrong with a firm's data before the contract is asked."""


class DataMappingError(DataError):
    """data.toml is missing, not valid, or does not go with the contract."""


class DataSourceError(DataError):
    """A data file is missing, cannot be read, or lacks a column that data.toml names."""


class TooFewRowsError(DataError):
    """The data fit the contract, and are fewer than the policy's minimum_rows, or too few to validate on."""
