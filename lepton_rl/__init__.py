"""A learned controller that adapts a trained network to a new domain in one run.

```python
from lepton_rl import Domain, adapt
result = adapt(model, source=Domain.from_folder("photos/studio"), target=Domain.from_folder("photos/phone"))
```

`lepton_rl.envs` holds the Gymnasium environments, `lepton_rl.agents` what trains and compares policies; neither is
imported here, so that applying a policy needs torch, numpy and safetensors only.
"""

__version__ = "0.1.0"

from lepton_rl.adapt import AdaptResult, adapt
from lepton_rl.artifact import load_policy
from lepton_rl.controls import ControlSettings
from lepton_rl.domain import Domain
from lepton_rl.errors import InputError
from lepton_rl.shifts import Shift
from lepton_rl.suite import TaskSuite
from lepton_rl.task import AdaptationTask

__all__ = [
    "AdaptResult",
    "AdaptationTask",
    "ControlSettings",
    "Domain",
    "InputError",
    "Shift",
    "TaskSuite",
    "__version__",
    "adapt",
    "load_policy",
]
