"""Models from the Hugging Face hub, or a mirror of it, over its HTTP API: only when the user names one."""

from dacheng.formats.hub.download import Download, download
from dacheng.formats.hub.listing import HubFile, Listing, list_files
from dacheng.formats.hub.reference import HubReference

__all__ = ["Download", "HubFile", "HubReference", "Listing", "download", "list_files"]
