from tests.data.conftest import fresh_cache, write  # noqa: F401
from tests.tokenization.conftest import trained  # noqa: F401
