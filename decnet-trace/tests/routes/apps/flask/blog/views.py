from flask import Blueprint

posts = Blueprint("posts", __name__, url_prefix="/posts")
comments = Blueprint("comments", __name__, url_prefix="/<int:post>/comments")
feeds = Blueprint("feeds", __name__, url_prefix="/never")


@posts.get("/")
def all_posts():
    return "all"


@posts.route("/<path:where>.html")
def page(where):
    return where


@comments.get("/<uuid:comment>")
def comment(post, comment):
    return str(comment)


@feeds.route("/<string(length=2):lang>/feed", methods=["GET"])
def feed(lang):
    return lang


posts.register_blueprint(comments)
