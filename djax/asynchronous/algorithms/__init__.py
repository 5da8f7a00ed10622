"""Asynchronous algorithms. Each defines what ONE worker does at each kind of event."""

from ._acid import AcidState as AcidState
from ._acid import acid as acid
from ._adpsgd import ADPSGDState as ADPSGDState
from ._adpsgd import adpsgd as adpsgd
from ._constants import AcidConstants as AcidConstants
from ._constants import Asked as Asked
from ._constants import acid_constants as acid_constants
from ._constants import edge_rates as edge_rates
from ._transformation import EventTransformation as EventTransformation
from ._transformation import other_rates as other_rates
