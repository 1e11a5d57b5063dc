//! Which container a process runs in.

use std::{fs, io::Read, path::Path};

use super::procfs;

/// Where Docker keeps what it knows of each container (its default data root).
const DOCKER_CONTAINERS: &str = "/var/lib/docker/containers";
/// The most bytes read of such a file.
const DOCKER_CONFIG_MAX: u64 = 1 << 20;
/// The length of a container's id: a SHA-256 in hexadecimal.
const ID_LENGTH: usize = 64;

/// The id of the container that a process runs in, from /proc/PID/cgroup.
pub(super) fn id(pid: u32) -> Option<String> {
    parse_cgroup(&procfs::text(pid, "cgroup").ok()?)
}

/// Finds the id in the lines `HIERARCHY:CONTROLLERS:PATH` of cgroups of version 1 and 2.
///
/// Docker, containerd, CRI-O and Podman all name the container's cgroup by its id of 64 hexadecimal
/// digits, alone (`/docker/ID`, `/kubepods/besteffort/podUID/ID`) or between a prefix and a suffix
/// (`docker-ID.scope`, `cri-containerd-ID.scope`, `crio-ID.scope`, `libpod-ID.scope`,
/// `kubepods-...slice:cri-containerd:ID`); the innermost is the process's own. Where the process has a
/// cgroup namespace of its own the path is relative to ours, so it still shows.
fn parse_cgroup(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let path = line.splitn(3, ':').nth(2)?;
        path.rsplit('/').find_map(segment_id).map(str::to_owned)
    })
}

fn segment_id(segment: &str) -> Option<&str> {
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    // `libpod-payload-ID` and CRI-O's `crio-conmon-ID` are handled alike: what counts is the end.
    let candidate = name.rsplit(['-', ':']).next()?;
    let is_id = candidate.len() == ID_LENGTH
        && candidate
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_id.then_some(candidate)
}

/// The name of a Docker container, where Docker's own record of it can be read.
pub(super) fn docker_name(id: &str) -> Option<String> {
    if id.len() != ID_LENGTH || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let path = Path::new(DOCKER_CONTAINERS).join(id).join("config.v2.json");
    let mut bytes = Vec::new();
    fs::File::open(path)
        .ok()?
        .take(DOCKER_CONFIG_MAX)
        .read_to_end(&mut bytes)
        .ok()?;
    parse_docker_config(&bytes)
}

fn parse_docker_config(bytes: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Config {
        #[serde(rename = "Name")]
        name: String,
    }
    let config: Config = serde_json::from_slice(bytes).ok()?;
    let name = config.name.trim_start_matches('/');
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "3f4c9a1b2d5e6f708192a3b4c5d6e7f80123456789abcdef0123456789abcdef";
    const OUTER: &str = "0f4c9a1b2d5e6f708192a3b4c5d6e7f80123456789abcdef0123456789abcdef";

    /// The forms that container managers use give the id; processes outside containers give none.
    #[test]
    fn finds_ids() {
        let with_id = [
            "12:cpu,cpuacct:/docker/ID",
            "0::/docker/ID",
            "0::/system.slice/docker-ID.scope",
            "0::/system.slice/containerd.service/kubepods-besteffort-pod1_2.slice:cri-containerd:ID",
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-ID.scope",
            "4:memory:/kubepods/besteffort/pod7c4e-11/ID",
            "0::/kubepods.slice/kubepods-pod1.slice/crio-ID.scope",
            "0::/machine.slice/libpod-ID.scope",
            "0::/machine.slice/libpod-ID.scope/container",
            "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
            "0::/../docker-ID.scope",
            "0::/docker/OUTER/docker/ID",
            "0::/default/ID",
            "13:name=systemd:/\n0::/system.slice/docker-ID.scope\n",
            "0::/system.slice/docker-ID.scope/init.scope",
        ];
        for text in with_id {
            let text = text.replace("ID", ID).replace("OUTER", OUTER);
            assert_eq!(parse_cgroup(&text).as_deref(), Some(ID), "{text}");
        }
        for text in [
            "0::/",
            "",
            "0::/system.slice/shop.service",
            "0::/user.slice/user-1000.slice/session-2.scope",
            "0::/system.slice/docker-3f4c9a1b2d5e.scope",
            "nonsense",
        ] {
            assert_eq!(parse_cgroup(text), None, "{text}");
        }
    }

    /// Docker's record gives the name without its slash; a broken one gives none.
    #[test]
    fn reads_docker_names() {
        let config = br#"{"ID":"x","Name":"/shop-web-1","Config":{"Env":["A=b"]}}"#;
        assert_eq!(parse_docker_config(config).as_deref(), Some("shop-web-1"));
        assert_eq!(parse_docker_config(b"{\"Name\":\"/\"}"), None);
        assert_eq!(parse_docker_config(b"{\"Name\":"), None);
        assert_eq!(docker_name("../../../etc"), None);
    }

    proptest! {
        /// No text makes the parser panic, and what it finds always is an id.
        #[test]
        fn survives_any_text(text in "[0-9a-f:/\\-.scopé\\n]{0,200}") {
            if let Some(id) = parse_cgroup(&text) {
                prop_assert_eq!(id.len(), ID_LENGTH);
            }
        }
    }
}
