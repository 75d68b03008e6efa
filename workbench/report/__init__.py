"""The report of an evaluation: one page that needs nothing but itself, and its tables as CSV and LaTeX beside it."""

from .page import write_report as write_report
from .tables import by_value as by_value
from .tables import headline as headline
