"""What AI4I 2020 and the simulated milling process have in common: columns, derived inputs and the task's settings."""

from dure_models.contract import Column, ColumnType, DataContract, Role
from dure_models.training import TrainingSettings

MODEL = "tabular"

COLUMNS = (
    Column(name="product_quality", type=ColumnType.CATEGORY, role=Role.FEATURE, categories=("L", "M", "H")),
    Column(name="air_temperature", type=ColumnType.FLOAT, role=Role.FEATURE, unit="K", range=(285, 315)),
    Column(name="process_temperature", type=ColumnType.FLOAT, role=Role.FEATURE, unit="K", range=(290, 330)),
    Column(name="rotational_speed", type=ColumnType.FLOAT, role=Role.FEATURE, unit="1/min", range=(1000, 4000)),
    Column(name="torque", type=ColumnType.FLOAT, role=Role.FEATURE, unit="N*m", range=(0, 100)),
    Column(name="tool_wear", type=ColumnType.FLOAT, role=Role.FEATURE, unit="min", range=(0, 300)),
    Column(name="machine_failure", type=ColumnType.INTEGER, role=Role.TARGET, range=(0, 1)),
)

# The physics every machinist knows: heat is carried off by a temperature difference, a spindle's power is torque times
# speed, a worn tool overstrains at high torque. All arms of a comparison get the same inputs.
MODEL_OPTIONS: dict[str, object] = {
    "derived": [
        {
            "name": "temperature_difference",
            "derivation": "difference",
            "left": "process_temperature",
            "right": "air_temperature",
            "range": [4.0, 16.0],
        },
        {
            "name": "power",
            "derivation": "product",
            "left": "torque",
            "right": "rotational_speed",
            "range": [10_000.0, 110_000.0],
        },
        {
            "name": "strain",
            "derivation": "product",
            "left": "tool_wear",
            "right": "torque",
            "range": [0.0, 20_000.0],
        },
    ],
}

# Chosen on validation rows of AI4I, three deals (seeds 0-2): rate, epochs, weight decay, dropout, bins.
TRAINING = TrainingSettings(num_rounds=30, local_epochs=2, learning_rate=2e-3, batch_size=32, count_cap=2000)


def contract(name: str, title: str, *, simulated: bool, licence: str, description: str) -> DataContract:
    """The machining contract under a data set's own name and title."""
    return DataContract(
        name=name, title=title, simulated=simulated, licence=licence, description=description, columns=COLUMNS
    )
