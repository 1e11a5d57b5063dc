//! SIGHUP: the configuration is read again.

use tracing::{info, warn};

use crate::{
    config::{Loaded, Loader, Settings},
    error::{Error, Result},
    pipeline::{Pipeline, Reload},
};

/// What it takes to read the configuration again.
pub(super) struct Reloader {
    pub(super) loader: Loader,
    /// What is in effect.
    pub(super) settings: Settings,
    /// Processes are named by their pids: the configuration's targets do not count.
    pub(super) has_pids: bool,
    /// The rate of samples can change: something was made ready for them at the start, and they do not
    /// all go into one profile, which has one rate.
    pub(super) rate_is_live: bool,
}

impl Reloader {
    /// Opens the spans file anew, and reads the configuration again. What is wrong with it is said, and
    /// nothing changes then.
    pub(super) fn reload(&mut self, pipeline: &Pipeline) {
        pipeline.reopen();
        match self.read() {
            Ok((settings, reload)) => {
                if pipeline.reload(reload) {
                    info!("the configuration was read again");
                    self.settings = settings;
                } else {
                    warn!(
                        "the configuration was not changed: the pipeline is busy; send SIGHUP again"
                    );
                }
            }
            Err(error) => warn!("the configuration is kept as it was: {error}"),
        }
    }

    /// What will be in effect, and what that changes.
    fn read(&self) -> Result<(Settings, Reload)> {
        let variable = |name: &str| std::env::var(name).ok();
        let Loaded {
            settings,
            mut warnings,
            ..
        } = self.loader.load(variable)?;
        settings.check(&variable, &mut warnings)?;
        let before = &self.settings;
        let (settings, fixed) = before
            .reread(&settings, |key| self.is_live(key))
            .map_err(Error::failed)?;
        let reload = Reload {
            policy: settings.policy(&mut Vec::new())?,
            sampling: settings.sampling()?,
            rate: changed(&before.profile.rate, &settings.profile.rate).copied(),
            selector: match changed(&before.targets, &settings.targets) {
                Some(_) if !self.has_pids => Some(settings.selector(&[])?),
                _ => None,
            },
            learn_routes: changed(&before.routes.learn, &settings.routes.learn).copied(),
        };
        for warning in &warnings {
            warn!("{warning}");
        }
        if !fixed.is_empty() {
            warn!(
                "only another start changes {}; restart decnet-trace",
                fixed.join(", ")
            );
        }
        Ok((settings, reload))
    }

    /// Whether a key changes at once.
    fn is_live(&self, key: &str) -> bool {
        match key.split_once('.') {
            Some(("targets" | "sampling" | "redaction" | "routes", _)) => true,
            Some(("profile", "rate")) => self.rate_is_live,
            _ => false,
        }
    }
}

/// The new value, where it is another one.
fn changed<'a, T: PartialEq>(before: &T, now: &'a T) -> Option<&'a T> {
    (before != now).then_some(now)
}
