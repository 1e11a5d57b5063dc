class Settings:
    API_VERSION = "v2"
    API_PREFIX: str = f"/api/{API_VERSION}"


settings = Settings()
