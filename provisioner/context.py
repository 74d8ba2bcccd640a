"""What all tasks of the service share."""

from dataclasses import dataclass

from provisioner.cluster import Cluster
from provisioner.database import Database
from provisioner.health_watch import HealthWatch
from provisioner.reachability import Reachability
from provisioner.settings import Settings


@dataclass(frozen=True)
class Context:
    """The settings, the two systems that the service connects, and what is known of them."""

    settings: Settings
    database: Database
    cluster: Cluster
    database_reachability: Reachability
    cluster_reachability: Reachability
    health_watch: HealthWatch
