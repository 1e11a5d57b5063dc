//! The clocks that the CPUs are sampled by.

use aya::{
    programs::{
        PerfEvent,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
    },
    util::online_cpus,
};

use super::load::{Bpf, Link, program, refused};
use crate::error::{Error, Result};

impl Bpf {
    /// Samples every CPU so often a second, in place of how often it was before; 0: no longer. Only
    /// where the programs were [loaded](Bpf::load) for samples.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; then it goes on as it was.
    pub fn sample(&mut self, rate: u32) -> Result<()> {
        let mut clocks = Vec::new();
        if rate > 0 {
            let cpus = online_cpus().map_err(|(path, error)| {
                Error::failed(format!("cannot list the online CPUs from {path}: {error}"))
            })?;
            let program = program::<PerfEvent>(&mut self.ebpf, self.sample)?;
            for cpu in cpus {
                let link = program
                    .attach(
                        PerfEventConfig::Software(SoftwareEvent::CpuClock),
                        PerfEventScope::AllProcessesOneCpu { cpu },
                        SamplePolicy::Frequency(u64::from(rate)),
                        false,
                    )
                    .and_then(|id| program.take_link(id))
                    .map_err(|error| refused(&format!("sample CPU {cpu}"), &error))?;
                clocks.push(Link::Sample(link));
            }
        }
        self.links.retain(|link| !matches!(link, Link::Sample(_)));
        self.links.append(&mut clocks);
        Ok(())
    }
}
