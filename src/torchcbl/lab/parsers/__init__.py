"""What each command of the command line takes. Only what parsing needs is imported, so that help answers at once."""

from torchcbl.lab.parsers.runs import add_audit, add_listen, add_measure, add_robustness, add_sites, add_stability
from torchcbl.lab.parsers.studies import add_compare, add_report, add_sweep

COMMANDS = (
    add_compare,
    add_sweep,
    add_report,
    add_sites,
    add_audit,
    add_stability,
    add_measure,
    add_robustness,
    add_listen,
)
