//! Applications as people write them, and the routes that their frameworks give them.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;

use super::*;

/// The templates of an application whose files are these.
fn routes(files: &[(&str, &str)], served: &str) -> Vec<String> {
    routes_with(files, served, None)
}

fn routes_with(files: &[(&str, &str)], served: &str, settings: Option<&str>) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let command: Vec<_> = ["python", "-m", "uvicorn", served]
        .map(str::to_owned)
        .to_vec();
    let finder = Finder {
        root: Root::open(folder.path()).unwrap(),
        cwd: PathBuf::from("/srv"),
        cwd_outside: folder.path().to_owned(),
        packages: Vec::new(),
        place: Place {
            directories: vec![PathBuf::from("/")],
            served: self::served(&Command::parse(&command), None, Path::new("/")),
            settings: settings.map(str::to_owned),
        },
    };
    let known = finder.find().unwrap();
    let texts = known.templates.iter().map(|t| t.text().to_owned());
    texts
        .filter(|text| {
            !matches!(
                text.as_str(),
                "/openapi.json" | "/docs" | "/docs/oauth2-redirect" | "/redoc"
            )
        })
        .collect()
}

/// FastAPI: routers in routers in other modules, with prefixes of all kinds.
#[test]
fn nested_routers() {
    let files = [
        (
            "shop/main.py",
            "from fastapi import FastAPI\nfrom .config import settings\nfrom .api import router as api\n\
             from shop import admin\n\
             app = FastAPI()\n@app.get('/')\nasync def root(): ...\n\
             app.include_router(api, prefix=settings.API)\n\
             app.include_router(admin.router)\n\
             app = Wrapped(app, x=1)\n",
        ),
        ("shop/__init__.py", ""),
        (
            "shop/config.py",
            "class Settings(BaseSettings):\n    API: str = '/api/v1'\n\nsettings = Settings()\n",
        ),
        (
            "shop/api/__init__.py",
            "from fastapi import APIRouter\nfrom . import users\nfrom .items import router as items\n\
             router = APIRouter()\nrouter.include_router(users.router, prefix='/users', tags=['u'])\n\
             for r in [items]:\n    router.include_router(r)\n",
        ),
        (
            "shop/api/users.py",
            "router = fastapi.APIRouter(\n    dependencies=[Depends(x)],\n)\n\
             @router.get('/me')\ndef me(): ...\n@router.get('/{user_id}', response_model=list[int])\ndef one(): ...\n\
             router.add_api_route('/{user_id}/x', one, methods=['PUT'])\n",
        ),
        (
            "shop/api/items.py",
            "PREFIX = '/items'\nrouter = APIRouter(prefix=f'{PREFIX}')\n@router.get('')\n@router.post(\"/\")\ndef f(): ...\n",
        ),
        (
            "shop/admin.py",
            "from fastapi import APIRouter\nrouter = APIRouter(prefix='/admin')\n\
             @router.delete('/{what:path}')\ndef f():\n    '''\n@router.get('/no')\n    '''\n",
        ),
    ];
    let want = [
        "/",
        "/api/v1/users/me",
        "/api/v1/users/{user_id}",
        "/api/v1/users/{user_id}/x",
        "/api/v1/items/",
        "/api/v1/items",
        "/admin/{what:path}",
    ];
    let mut found = routes(&files, "shop.main:app");
    let mut want: Vec<_> = want.map(str::to_owned).to_vec();
    // The decorators of one function are listed from the top, and declared from the bottom.
    found[4..6].sort_unstable();
    want[4..6].sort_unstable();
    assert_eq!(found, want);
}

/// Factories, and functions that routers are handed to.
#[test]
fn factories() {
    let files = [
        (
            "app.py",
            "from setup_routes import register\ndef create_app():\n    api = FastAPI()\n    register(api)\n    return api\n",
        ),
        (
            "setup_routes.py",
            "import users\ndef register(target: FastAPI, x=1):\n    target.include_router(users.make(), prefix='/u')\n    more(app=target)\n\
             def more(app):\n    @app.get('/more')\n    def f(): ...\n",
        ),
        (
            "users.py",
            "def make():\n    r = APIRouter()\n    @r.get('/{id}')\n    def one(id): ...\n    return r\n",
        ),
    ];
    assert_eq!(routes(&files, "app:create_app"), ["/u/{id}", "/more"]);
    assert_eq!(routes(&files, "app:create_app()"), ["/u/{id}", "/more"]);
}

/// Starlette: lists of routes, mounts in mounts, applications below.
#[test]
fn lists_of_routes() {
    let files = [(
        "main.py",
        "from starlette.routing import Route, Mount\nusers = [Route('/', a), Route('/{id:int}', b, methods=['GET'])]\n\
         sub = Starlette(routes=[Route('/deep', d)])\n\
         routes = [Route('/', home), Mount('/users', routes=users, name='u'), *extra,\n\
             Mount('/static', app=StaticFiles(directory='s')), WebSocketRoute('/ws', w), Mount('/sub', sub)]\n\
         extra = [Route('/late', x)]\n\
         app = Starlette(debug=True, routes=routes)\napp.router.routes.append(Route('/one', o))\n\
         app.routes.extend([Route('/two', t)])\nothers = []\nothers.append(Route('/no', n))\n",
    )];
    let want = [
        "/",
        "/users/",
        "/users/{id:int}",
        "/users/{path:path}",
        "/late",
        "/static/{path:path}",
        "/ws",
        "/sub/deep",
        "/sub/{path:path}",
        "/one",
        "/two",
    ];
    assert_eq!(routes(&files, "main:app"), want);
}

/// Flask: blueprints in blueprints, whose prefix the registration may replace.
#[test]
fn blueprints() {
    let files = [
        (
            "shop/__init__.py",
            "from flask import Flask\ndef create_app():\n    app = Flask(__name__)\n    from .views import bp, other\n    \
             app.register_blueprint(bp)\n    app.register_blueprint(other, url_prefix='/o')\n    \
             @app.route('/hi/<name>')\n    def hi(name): ...\n    app.add_url_rule('/rule/<int:n>', view_func=V.as_view('v'))\n    return app\n",
        ),
        (
            "shop/views.py",
            "from flask import Blueprint\nbp = Blueprint('bp', __name__, url_prefix='/bp')\nother = Blueprint('o', __name__, url_prefix='/gone')\n\
             inner = Blueprint('i', __name__, url_prefix='/inner')\nbp.register_blueprint(inner)\n\
             @inner.route('/<path:p>')\ndef a(p): ...\n@other.get('/<uuid:u>')\ndef b(u): ...\n@bp.post('/')\ndef c(): ...\n",
        ),
    ];
    let want = [
        "/static/<path:filename>",
        "/bp/inner/<path:p>",
        "/bp/",
        "/o/<uuid:u>",
        "/hi/<name>",
        "/rule/<int:n>",
    ];
    assert_eq!(routes(&files, "shop:create_app()"), want);
}

/// Django: from the settings over the patterns that are included.
#[test]
fn django_patterns() {
    let files = [
        (
            "site1/asgi.py",
            "import os\nos.environ.setdefault('DJANGO_SETTINGS_MODULE', 'site1.settings')\napplication = get_asgi_application()\n",
        ),
        ("site1/settings.py", "ROOT_URLCONF = 'site1.urls'\n"),
        (
            "site1/urls.py",
            "urlpatterns = [\n    path('', home),\n    path('admin/', admin.site.urls),\n    path('polls/', include('polls.urls')),\n    \
             path('api/', include([path('x/', x)])),\n]\nurlpatterns += [re_path(r'^old/(?P<y>[0-9]{4})/$', old)] + static('/m/')\n",
        ),
        (
            "polls/urls.py",
            "app_name = 'polls'\nurlpatterns = [path('<int:pk>/', V.as_view(), name='d'), path('<slug:s>/r', r)]\n",
        ),
    ];
    let want = [
        "/",
        "/polls/<int:pk>/",
        "/polls/<slug:s>/r",
        "/api/x/",
        "/old/<y>/",
    ];
    assert_eq!(routes(&files, "site1.asgi:application"), want);
    assert_eq!(
        routes_with(&files[1..], "gone:application", Some("site1.settings")),
        want
    );
}

/// A prefix that cannot be worked out takes its routes along, and a router that nobody includes serves
/// nothing.
#[test]
fn no_route_is_better_than_a_wrong_one() {
    let files = [(
        "main.py",
        "import os\napp = FastAPI()\na = APIRouter()\nb = APIRouter(prefix=os.getenv('P'))\nc = APIRouter()\n\
         @a.get('/{x}')\ndef f(): ...\n@b.get('/{x}')\ndef g(): ...\n@c.get('/{x}')\ndef h(): ...\n\
         app.include_router(a, prefix=os.environ['X'])\napp.include_router(b)\n\
         @app.get('/known')\ndef k(): ...\n@client.get('/other')\ndef l(): ...\n",
    )];
    assert_eq!(routes(&files, "main:app"), ["/known"]);
}

/// Where it is not known what is served, the folder's applications are read, but for what every path
/// would fit.
#[test]
fn unknown_applications() {
    let files = [
        (
            "deep/web.py",
            "app = FastAPI()\n@app.get('/a/{b}')\ndef f(): ...\n@app.get('/{p:path}')\ndef g(): ...\n",
        ),
        (
            "tests/x.py",
            "app = FastAPI()\n@app.get('/test')\ndef f(): ...\n",
        ),
        (
            ".venv/y.py",
            "app = FastAPI()\n@app.get('/venv')\ndef f(): ...\n",
        ),
    ];
    assert_eq!(routes(&files, "--factory"), ["/a/{b}"]);
}

/// Links out of the root, endless imports and files that are none do no harm.
#[test]
fn hostile_files() {
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(
        outside.path().join("secret.py"),
        "app = FastAPI()\n@app.get('/no')\ndef f(): ...\n",
    )
    .unwrap();
    std::os::unix::fs::symlink(
        outside.path().join("secret.py"),
        folder.path().join("main.py"),
    )
    .unwrap();
    std::os::unix::fs::symlink("/loop.py", folder.path().join("loop.py")).unwrap();
    fs::write(
        folder.path().join("a.py"),
        "from b import *\nimport loop, main, fifo\nfrom .. import x\n",
    )
    .unwrap();
    fs::write(
        folder.path().join("b.py"),
        "from a import *\nx = y\ny = x\ny.get('/z')\napp = f(app)\n",
    )
    .unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        folder.path().join("fifo.py"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let directory = Directory {
        path: PathBuf::from("/"),
        only: None,
    };
    let mut modules = Modules::new(Root::open(folder.path()).unwrap(), vec![directory]);
    let first = modules.load("a").unwrap();
    assert!(modules.get("main").is_none() && modules.get("loop").is_none());
    assert!(modules.get("fifo").is_none());
    assert!(resolve::templates(&modules, Some((first, Some("app"))), None).is_empty());
}
