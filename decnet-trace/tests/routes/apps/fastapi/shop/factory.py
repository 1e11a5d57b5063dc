"""The same application, made when the server asks for it."""


def create_app():
    from .main import app

    return app
