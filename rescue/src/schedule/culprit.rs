//! Which log filled the disk: what earlier runs freed, and what the check of full disks would free
//! now.

use std::collections::BTreeMap;
use std::path::Path;

use crate::base::units;
use crate::checks::disk_full;
use crate::finding::Context;
use crate::repair::RunState;
use crate::repair::runs;
use crate::space::names;

/// Less than this has filled no disk.
const LEAST: u64 = 10 << 20;

/// What rotates one kind of log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// logrotate can: the pattern of its active files, and a name for the rule.
    Log {
        /// As logrotate takes it.
        pattern: String,
        /// `vmware`, `nginx-access-log`.
        name: String,
    },
    /// Its writer rotates it: a sentence that says where that is set.
    OwnWriter(&'static str),
}

/// The log that took most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Culprit {
    /// What it is.
    pub family: Family,
    /// Bytes of all its generations that were, or would be, freed.
    pub bytes: u64,
    /// Names of its active files, as far as they are known.
    pub samples: Vec<String>,
}

impl Culprit {
    /// "logs of /var/log/vmware-*.log took 300.0 MiB".
    pub fn words(&self) -> String {
        match &self.family {
            Family::Log { pattern, .. } => format!("{pattern} took {}", units::bytes(self.bytes)),
            Family::OwnWriter(what) => {
                format!("{} of what was freed: {what}", units::bytes(self.bytes))
            }
        }
    }
}

/// Finds it; `None` where no log is known to have filled a disk of this node.
pub fn find(context: &Context<'_>) -> Option<Culprit> {
    let mut files: Vec<(String, u64)> = runs::list(context.guest)
        .unwrap_or_default()
        .into_iter()
        .filter(|run| !matches!(run.state, RunState::NotCommitted | RunState::Unreadable(_)))
        .flat_map(|run| run.freed)
        .map(|freed| (freed.path.to_string(), freed.bytes))
        .collect();
    files.extend(to_be_freed(context));
    largest(files)
}

/// What the disk-full check would free now.
fn to_be_freed(context: &Context<'_>) -> Vec<(String, u64)> {
    let findings = (disk_full::CHECK.run)(context).unwrap_or_default();
    let remedies = findings.iter().flat_map(|finding| &finding.remedies);
    let actions = remedies
        .filter_map(|remedy| remedy.prepare(context).ok())
        .flat_map(|prepared| prepared.free);
    actions
        .map(|action| (action.path.to_string(), action.frees))
        .collect()
}

fn largest(files: Vec<(String, u64)>) -> Option<Culprit> {
    let mut families: BTreeMap<Family, Culprit> = BTreeMap::new();
    for (path, bytes) in files {
        let Some((family, active)) = family_of(&path) else {
            continue;
        };
        let entry = || Culprit {
            family: family.clone(),
            bytes: 0,
            samples: Vec::new(),
        };
        let culprit = families.entry(family.clone()).or_insert_with(entry);
        culprit.bytes = culprit.bytes.saturating_add(bytes);
        if !culprit.samples.contains(&active) {
            culprit.samples.push(active);
        }
    }
    families
        .into_values()
        .max_by_key(|culprit| culprit.bytes)
        .filter(|culprit| culprit.bytes >= LEAST)
}

/// The family of a log and the path of its active file; `None` for what is no log.
fn family_of(path: &str) -> Option<(Family, String)> {
    let below = path.strip_prefix("/var/log/")?;
    let own = |sentence| Some((Family::OwnWriter(sentence), path.to_owned()));
    if below.starts_with("pods/") || below.starts_with("containers/") {
        return own(
            "container logs, which the kubelet rotates (containerLogMaxSize and \
             containerLogMaxFiles in its config)",
        );
    }
    if below.starts_with("journal/") {
        return own(
            "journals, which journald keeps small (SystemMaxUse= in /etc/systemd/journald.conf)",
        );
    }
    if below.starts_with("audit/") {
        return own(
            "the audit log, which auditd rotates (max_log_file and num_logs in \
             /etc/audit/auditd.conf)",
        );
    }
    let file = Path::new(path).file_name()?.to_str()?;
    let folder = Path::new(path).parent()?.to_str()?;
    let active = names::rotated(file).map_or_else(|| file.to_owned(), |rotated| rotated.stem);
    if [".tar", ".tgz", ".gz"]
        .iter()
        .any(|ending| active.ends_with(ending))
    {
        return None;
    }
    let active = format!("{folder}/{active}");
    if folder == "/var/log" && file.starts_with("vmware-") {
        // open-vm-tools numbers its own older files before the ending: vmware-vmsvc-root.1.log.
        let family = Family::Log {
            pattern: "/var/log/vmware-*[!0-9].log".to_owned(),
            name: "vmware".to_owned(),
        };
        return Some((family, active));
    }
    let name = active
        .trim_start_matches("/var/log/")
        .replace(['/', '.'], "-");
    // A name in logrotate's file must mean itself.
    let is_plain = active
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    is_plain.then(|| {
        (
            Family::Log {
                pattern: active.clone(),
                name,
            },
            active,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn culprit(files: &[(&str, u64)]) -> Option<Culprit> {
        largest(
            files
                .iter()
                .map(|(path, mib)| ((*path).to_owned(), mib << 20))
                .collect(),
        )
    }

    #[test]
    fn generations_and_kin_are_added_up() {
        let found = culprit(&[
            ("/var/log/vmware-vmsvc-root.3.log", 30),
            ("/var/log/vmware-network.1.log", 20),
            ("/var/log/syslog.1", 45),
            ("/var/cache/apt/archives/x.deb", 900),
            ("/var/log/support.tar.gz", 900),
        ])
        .unwrap();
        assert_eq!(found.words(), "/var/log/vmware-*[!0-9].log took 50.0 MiB");
        assert_eq!(
            found.samples,
            [
                "/var/log/vmware-vmsvc-root.log",
                "/var/log/vmware-network.log"
            ]
        );
        let found = culprit(&[
            ("/var/log/nginx/access.log.2.gz", 12),
            ("/var/log/nginx/access.log", 9),
        ])
        .unwrap();
        let Family::Log { pattern, name } = found.family else {
            panic!("not a log")
        };
        assert_eq!(
            (pattern.as_str(), name.as_str()),
            ("/var/log/nginx/access.log", "nginx-access-log")
        );
    }

    #[test]
    fn small_strange_and_self_rotated_logs() {
        assert_eq!(culprit(&[("/var/log/syslog.1", 5)]), None);
        assert_eq!(
            culprit(&[("/var/log/a b {\n/etc/passwd/x.log.1", 500)]),
            None
        );
        let found = culprit(&[
            ("/var/log/journal/1/system@2.journal", 500),
            ("/var/log/syslog", 50),
        ])
        .unwrap();
        assert!(matches!(found.family, Family::OwnWriter(what) if what.contains("SystemMaxUse")));
    }
}
