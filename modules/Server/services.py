"""What routes work with: the storage and everything of the server that outlives a request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Dict, List, Tuple

from starlette.requests import Request

from modules.Server.authentication import Authenticator
from modules.Server.feed import Feed
from modules.Server.gate import Traffic
from modules.Server.history import History
from modules.Server.metrics import Metrics
from modules.Server.sessions import Sessions

if TYPE_CHECKING:
    from modules.conversation_store.records import Conversation
    from modules.storage.manager import StorageManager
    from modules.storage.settings import ServerSettings

__all__ = ["Services", "services_of"]


@dataclass
class Services:
    """The parts of a running server.

    Attributes:
        storage: The open storage manager; somebody else's to close.
        settings: `storage.get_settings().server`, or what was given in its place.
        traffic: What is under way.
        authenticator: Knows tokens.
        feed: Tells streams of new messages.
        metrics: What Prometheus is told.
        sessions: The logins of the dashboard.
        history: The last minutes.
        forks: Of tenants whose conversations are looked at: until when it is good (monotonic seconds), and the newest
            forks. Open pages look every few seconds, and share this.
    """

    storage: StorageManager
    settings: ServerSettings
    traffic: Traffic = field(default_factory=Traffic)
    authenticator: Authenticator = field(init=False)
    feed: Feed = field(init=False)
    metrics: Metrics = field(init=False)
    sessions: Sessions = field(init=False)
    history: History = field(init=False)
    forks: Dict[str, Tuple[float, List[Conversation]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.authenticator = Authenticator(self.storage)
        self.feed = Feed(self.storage, self.traffic, self.settings.max_streams)
        self.metrics = Metrics(self.storage, self.traffic, self.feed)
        self.sessions = Sessions(self.settings.session_seconds)
        self.history = History(self.storage, self.traffic)


def services_of(request: Request) -> Services:
    """Return the services of the server that got `request`."""
    services: Services = request.app.state.services
    return services
