"""5-datasets, DualPrompt with its settings for CIFAR-100.

    python main.py five_datasets_dualprompt --data-path DIR --download

The settings that its authors took for these data sets are not known to us, so those of CIFAR-100 stand here, with one
prompt for each of the five tasks. Data as for five_datasets_l2p.
"""

from configs.cifar100_dualprompt import DEFAULTS as CIFAR100

DEFAULTS = CIFAR100 | {"dataset": "5-datasets"}
