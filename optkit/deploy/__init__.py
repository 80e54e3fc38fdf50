"""A variant as files that run where there is no optkit. What is named here is imported when it is first used."""

from typing import TYPE_CHECKING

from optkit.core.lazy import lazy_names

if TYPE_CHECKING:
    from optkit.deploy.exporting import Exported, export
    from optkit.deploy.hub import Sent, push
    from optkit.deploy.repository import export_repository
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["Exported", "Sent", "export", "export_repository", "push"]
