//! Routes of the Docker Engine API, which Podman serves too
//! (<https://docs.docker.com/reference/api/engine/>): ids and names are folded, and images' names hold
//! slashes.

/// Collections whose members are named in the path's second segment.
const COLLECTIONS: [&str; 12] = [
    "containers",
    "images",
    "networks",
    "volumes",
    "exec",
    "services",
    "tasks",
    "nodes",
    "secrets",
    "configs",
    "plugins",
    "distribution",
];

/// What stands in that place and is no member: operations on all of them.
const OPERATIONS: [&str; 9] = [
    "json",
    "create",
    "prune",
    "search",
    "get",
    "load",
    "pull",
    "privileges",
    "list",
];

/// Operations on a member, behind its name.
const ACTIONS: [&str; 29] = [
    "json",
    "top",
    "logs",
    "changes",
    "export",
    "stats",
    "resize",
    "start",
    "stop",
    "restart",
    "kill",
    "update",
    "rename",
    "pause",
    "unpause",
    "attach",
    "wait",
    "archive",
    "exec",
    "history",
    "push",
    "tag",
    "get",
    "connect",
    "disconnect",
    "enable",
    "disable",
    "upgrade",
    "set",
];

/// Whether a unix socket is Docker's, or Podman's, going by its file's name.
pub(super) fn is_docker(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.contains("docker") || name.contains("podman")
}

/// The route of a path; `None` where it is not one of the API's.
pub(super) fn route(path: &str) -> Option<String> {
    let mut route = String::new();
    let mut rest = path.strip_prefix('/')?;
    if let Some((version, behind)) = rest.split_once('/')
        && is_version(version)
    {
        route.push('/');
        route.push_str(version);
        rest = behind;
    }
    if let Some(behind) = rest.strip_prefix("libpod/") {
        route.push_str("/libpod");
        rest = behind;
    }
    let (collection, member) = match rest.split_once('/') {
        Some((collection, member)) => (collection, Some(member)),
        None => (rest, None),
    };
    let known = COLLECTIONS.into_iter().find(|known| *known == collection)?;
    route.push('/');
    route.push_str(known);
    let Some(member) = member else {
        return Some(route);
    };
    if let Some(operation) = OPERATIONS.into_iter().find(|known| *known == member) {
        route.push('/');
        route.push_str(operation);
        return Some(route);
    }
    let placeholder = match known {
        "images" | "volumes" | "plugins" | "distribution" => "/{name}",
        _ => "/{id}",
    };
    route.push_str(placeholder);
    if let Some((_, last)) = member.rsplit_once('/')
        && let Some(action) = ACTIONS.into_iter().find(|known| *known == last)
    {
        // `/containers/{id}/attach/ws` is the one with two.
        route.push('/');
        route.push_str(action);
    } else if member.ends_with("/attach/ws") {
        route.push_str("/attach/ws");
    }
    Some(route)
}

/// `v1.43`, `v5.0.0`.
fn is_version(segment: &str) -> bool {
    segment.len() <= 12
        && segment.strip_prefix('v').is_some_and(|digits| {
            digits.starts_with(|c: char| c.is_ascii_digit())
                && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids and names are folded, of whatever form they are; operations stay.
    #[test]
    fn routes() {
        for (path, want) in [
            ("/containers/json", Some("/containers/json")),
            ("/containers/create", Some("/containers/create")),
            (
                "/containers/4f66ad9a0b2e/json",
                Some("/containers/{id}/json"),
            ),
            ("/containers/my-app/logs", Some("/containers/{id}/logs")),
            (
                "/containers/my-app/attach/ws",
                Some("/containers/{id}/attach/ws"),
            ),
            (
                "/v1.43/containers/web_1/start",
                Some("/v1.43/containers/{id}/start"),
            ),
            ("/v1.43/containers/web_1", Some("/v1.43/containers/{id}")),
            (
                "/v1.43/images/nginx/json",
                Some("/v1.43/images/{name}/json"),
            ),
            (
                "/v1.43/images/registry.example:5000/team/app/push",
                Some("/v1.43/images/{name}/push"),
            ),
            ("/images/create", Some("/images/create")),
            ("/volumes/data", Some("/volumes/{name}")),
            ("/networks/bridge/connect", Some("/networks/{id}/connect")),
            ("/exec/4f66ad9a0b2e/start", Some("/exec/{id}/start")),
            (
                "/v5.0.0/libpod/containers/x/json",
                Some("/v5.0.0/libpod/containers/{id}/json"),
            ),
            ("/_ping", None),
            ("/v1.43/info", None),
            ("/", None),
            ("", None),
        ] {
            assert_eq!(route(path).as_deref(), want, "{path}");
        }
    }

    /// The socket is told by its file's name.
    #[test]
    fn sockets() {
        assert!(is_docker("/var/run/docker.sock"));
        assert!(is_docker("/run/user/1000/podman/podman.sock"));
        assert!(!is_docker("/run/docker/other.sock"));
    }

    proptest::proptest! {
        /// Any path has a route or none, and no id stays in one.
        #[test]
        fn never_panics(path in "/(v1.4/)?(containers|images|exec)/\\PC{0,40}") {
            let _ = route(&path);
            let _ = route(&path[1..]);
        }
    }
}
