"""What a site allows: the values, how they are read and written, and the judgement. Pure."""

from site_agents.policy.facts import Facts, Finding
from site_agents.policy.holds import Holds
from site_agents.policy.judgement import needs_approval
from site_agents.policy.nodes import PolicyFileError
from site_agents.policy.pins import Confirmation, OperatorPin, operator_fault
from site_agents.policy.reader import parse_policy
from site_agents.policy.text import policy_text
from site_agents.policy.values import (
    AcknowledgedRisk,
    Allowed,
    DataRule,
    Hours,
    LogsMode,
    OneOf,
    Policy,
    Range,
    TaskRule,
    WithoutDp,
)

__all__ = [
    "AcknowledgedRisk",
    "Allowed",
    "Confirmation",
    "DataRule",
    "Facts",
    "Finding",
    "Holds",
    "Hours",
    "LogsMode",
    "OneOf",
    "OperatorPin",
    "Policy",
    "PolicyFileError",
    "Range",
    "TaskRule",
    "WithoutDp",
    "needs_approval",
    "operator_fault",
    "parse_policy",
    "policy_text",
]
