"""Flask with a factory and blueprints in blueprints."""

from flask import Flask, request


def create_app():
    app = Flask(__name__)

    from .views import feeds, posts

    app.register_blueprint(posts)
    app.register_blueprint(feeds, url_prefix="/syndicated")

    @app.route("/hello/<name>")
    def hello(name):
        return name

    app.add_url_rule("/sum/<int:a>/<int:b>", view_func=lambda a, b: str(a + b), endpoint="sum")

    @app.after_request
    def own_route(response):
        if request.url_rule is not None:
            response.headers["x-route"] = request.url_rule.rule
        return response

    return app
