from tests.data.conftest import fresh_cache, write  # noqa: F401
