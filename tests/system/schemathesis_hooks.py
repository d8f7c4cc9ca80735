"""What Schemathesis loads beside its settings, so that its chains of requests have something to go on with.

Of a request that is made at random something is mostly refused; such ones are tried each by itself. Here what makes
something is sound, and what follows is at random.
"""

from typing import Any

import schemathesis
from schemathesis.generation.meta import TestPhase

SOUND: dict[str, dict[str, Any]] = {
    "images_generations": {"prompt": "a cat", "size": "64x64"},
    "music_generations": {"prompt": "slow"},
    "responses": {"input": "Hi"},
}


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    sound = SOUND.get(case.operation.definition.raw.get("operationId", ""))
    if sound is None or case.meta is None or case.meta.phase.name != TestPhase.STATEFUL:
        return
    given = case.body if isinstance(case.body, dict) else {}
    linked = {name: value for name, value in given.items() if str(value).startswith("resp_")}
    case.body = {**sound, **linked}
    case.headers.pop("X-Backend", None)
