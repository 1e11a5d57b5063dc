//! Network namespaces.

use std::process::Command;

/// Two network namespaces with a virtual cable between them; they go with it.
pub(crate) struct Cable {
    pub(crate) ends: [String; 2],
}

impl Cable {
    /// The address of each end.
    pub(crate) const ADDRESSES: [&'static str; 2] = ["10.219.83.1", "10.219.83.2"];

    /// Two namespaces of this name; `None`, and why, where that can't be. `ports` are those that connections
    /// begin from.
    pub(crate) fn new(name: &str, ports: &str) -> Option<Self> {
        let own = std::process::id();
        let ends = ["a", "b"].map(|end| format!("decnet-{own}-{name}{end}"));
        let cable = Self { ends };
        match cable.make(ports) {
            Ok(()) => Some(cable),
            Err(why) => {
                println!("SKIPPED: no network namespaces here: {why}");
                None
            }
        }
    }

    fn make(&self, ports: &str) -> Result<(), String> {
        let [a, b] = &self.ends;
        ip(&["netns", "add", a])?;
        ip(&["netns", "add", b])?;
        let other_end = ["peer", "name", "v0", "netns", b];
        ip(&[
            &["-n", a, "link", "add", "v0", "type", "veth"][..],
            &other_end,
        ]
        .concat())?;
        for (end, address) in self.ends.iter().zip(Self::ADDRESSES) {
            let address = format!("{address}/24");
            ip(&["-n", end, "addr", "add", &address, "dev", "v0"])?;
            ip(&["-n", end, "link", "set", "v0", "up"])?;
            ip(&["-n", end, "link", "set", "lo", "up"])?;
            let set = format!("echo {ports} >/proc/sys/net/ipv4/ip_local_port_range");
            ip(&["netns", "exec", end, "sh", "-c", &set])?;
        }
        Ok(())
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for end in &self.ends {
            let _ = ip(&["netns", "del", end]);
        }
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip")
        .args(args)
        .output()
        .map_err(|error| format!("ip: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}
