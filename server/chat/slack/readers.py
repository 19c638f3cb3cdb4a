"""Who may read photos and reports in Slack: by default the members of the bot's own workspace.

Guests, and people of other organisations in shared channels, can mention a bot like anybody else; they are others.
"""

from __future__ import annotations

import logging

from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError

log = logging.getLogger(__name__)

_NOBODY = {"user_not_found", "user_not_visible", "users_not_found"}
_SETTING = "ask your administrator to add you to REFDIFF_SLACK_READERS"


class SlackReaders:
    def __init__(self, client: WebClient, readers: str, deciders: str = "") -> None:
        """readers: ids of users, and of workspaces for all their members, separated by commas; * for everybody; "" for the
        members of the bot's own workspace. deciders: ids of users who decide, and so may read.
        """
        self._client = client
        self._readers = {r.strip() for r in readers.split(",") if r.strip()}
        self._named = self._readers | {d.strip() for d in deciders.split(",") if d.strip()} - {"*"}
        self._own_team = ""

    def refusal(self, user: str, channel: str = "", shared: bool | None = None) -> str:
        """Why a user may read nothing in that channel; "" if they may. Calls Slack; raises if Slack is unavailable.

        channel: "" where the answer is for the user alone. shared: whether other organisations read it; None if unknown.
        """
        if "*" in self._readers or user in self._named:
            return ""
        if not self._is_member(user):
            return f"RefDiff answers members of its own workspace only, no guests; {_SETTING}."
        if why := self._shared(channel) if shared is None else "is shared with another organisation" if shared else "":
            return (
                f"This channel {why}, which could read the report. "
                f"Ask in a channel of your own or in a direct message, or {_SETTING}."
            )
        return ""

    def _is_member(self, user: str) -> bool:
        try:
            found = self._client.users_info(user=user).get("user") or {}
        except SlackApiError as e:
            said = str(e.response.get("error", ""))
            if said == "missing_scope":
                log.warning("cannot tell members from guests: give the Slack app the scope users:read")
            if said in {*_NOBODY, "missing_scope"}:
                return False
            raise
        if any(
            found.get(kind) for kind in ("is_restricted", "is_ultra_restricted", "is_stranger", "is_bot", "deleted")
        ):
            return False
        teams = {str(found.get("team_id") or ""), *((found.get("enterprise_user") or {}).get("teams") or ())}
        return bool(teams & (self._readers or {self._team()}))

    def _shared(self, channel: str) -> str:
        """Why other organisations may read a channel; "" if they do not. Only buttons and shortcuts do not say so
        themselves."""
        if not channel or channel.startswith("D"):  # a conversation with the user alone
            return ""
        try:
            found = self._client.conversations_info(channel=channel).get("channel") or {}
        except SlackApiError as e:
            said = str(e.response.get("error", ""))
            scopes = ": give the Slack app the scopes channels:read and groups:read" if said == "missing_scope" else ""
            log.warning("cannot tell whether channel %s is shared (%s)%s", channel, said, scopes)
            return f"may be shared (Slack does not say: {said}) with another organisation"
        shared = found.get("is_ext_shared") or found.get("is_pending_ext_shared")
        return "is shared with another organisation" if shared else ""

    def _team(self) -> str:
        if not self._own_team:
            self._own_team = str(self._client.auth_test()["team_id"])
        return self._own_team
