"""FastAPI with routers in routers, applications in applications, and a factory."""

from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from shop.api import router as api
from .config import settings


class OwnRoute:
    """Says in a header which route the framework itself took."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def answer(message):
            route = scope.get("route")
            if message["type"] == "http.response.start" and route is not None:
                # In newer FastAPI an included route keeps its own path, beside the whole one.
                context = scope.get("fastapi", {}).get("effective_route_context")
                path = route.path if context is None else context.path
                own = scope.get("root_path", "") + path
                message["headers"] = [*message["headers"], (b"x-route", own.encode())]
            await send(message)

        await self.app(scope, receive, answer)


async def hello(request):
    return PlainTextResponse("hello")


def make_admin():
    admin = FastAPI()

    @admin.get("/stats/{day:int}")
    async def stats(day: int):
        return day

    return admin


app = FastAPI(docs_url="/manual")


@app.get("/")
async def root():
    return "root"


app.include_router(api, prefix=settings.API_PREFIX)
app.mount("/admin", make_admin())
app.router.routes.append(Mount("/plain", routes=[Route("/hello/{name}", hello)]))


@app.get("/items/{item_id}")
async def item(item_id: str):
    return item_id


@app.post("/items/special")
async def special():
    return "special"


@app.api_route("/any/{rest:path}", methods=["GET", "PUT"])
async def anything(rest: str):
    return rest


app = OwnRoute(app)
