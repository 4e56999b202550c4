//! One node as somebody reported it: the files of a real node, broken by a script.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::fixtures::unpack_small_control_plane;
use tests::{Cmd, Ran, rescue_binary};

/// Helpers for the scripts: `healthy` renews everything, so that only the case's fault is left.
const LIB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reports/lib.sh");

/// A node without etcd's data, in a folder that goes with the value.
pub struct Case {
    folder: tempfile::TempDir,
}

impl Case {
    /// A real control plane of 1.20.2, then changed by `script` (bash; `$T` is the tree, `$K`
    /// /etc/kubernetes, `$P` its pki, `$KP` the kubelet's; `healthy` and more are in lib.sh).
    pub fn new(script: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        unpack_small_control_plane(folder.path())?;
        let case = Self { folder };
        case.change(script)?;
        Ok(case)
    }

    /// Runs a further script on the tree.
    pub fn change(&self, script: &str) -> Result<()> {
        let whole = format!("set -- \"$1\"; . '{LIB}'; {script}");
        Cmd::new("bash")
            .args(["-c", &whole, "case"])
            .arg(self.root())
            .ok()?;
        Ok(())
    }

    /// The tree.
    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    /// A file of the node.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    /// Runs a command of rescue on the tree.
    pub fn rescue(&self, words: &[&str]) -> Result<Ran> {
        Cmd::new(rescue_binary())
            .args(words)
            .arg("--root")
            .arg(self.root())
            .run()
    }

    /// Runs a command of rescue on the tree, with the answers to its questions.
    pub fn answering(&self, words: &[&str], answers: &str) -> Result<Ran> {
        Cmd::new(rescue_binary())
            .args(words)
            .arg("--root")
            .arg(self.root())
            .stdin(answers)
            .run()
    }

    /// The findings of one check, or of all where `check` is empty, as JSON.
    pub fn findings(&self, check: &str) -> Result<Vec<Value>> {
        let ran = self.rescue(&["inspect", "--json"])?;
        let json = ran.json()?;
        let findings = json["nodes"][0]["findings"].as_array();
        let findings = findings.with_context(|| ran.transcript())?;
        let is_asked = |finding: &&Value| check.is_empty() || finding["check"] == check;
        Ok(findings.iter().filter(is_asked).cloned().collect())
    }

    /// The identifiers of the modes that are found and count for the exit code, in order; but for
    /// etcd's, whose data these nodes do not have.
    pub fn modes(&self) -> Result<Vec<String>> {
        // A tree in a folder has the fullness of the disk that the test runs on.
        let elsewhere = ["etcd", "disk-full"];
        let is_own = |finding: &Value| !elsewhere.iter().any(|check| finding["check"] == *check);
        let counts = |finding: &Value| finding["severity"] != "note" && is_own(finding);
        let found = self.findings("")?;
        Ok(found
            .iter()
            .filter(|finding| counts(finding))
            .filter_map(|finding| finding["mode"].as_str().map(str::to_owned))
            .collect())
    }

    /// Asserts that a finding of a mode has all `words` in its title, evidence or advice.
    pub fn expects(&self, mode: &str, words: &[&str]) -> Result<Value> {
        let found = self.findings("")?;
        let has_all = |finding: &&Value| {
            let text = finding.to_string();
            finding["mode"] == mode && words.iter().all(|word| text.contains(word))
        };
        let finding = found.iter().find(has_all).cloned();
        finding.with_context(|| format!("no {mode} that says {words:?} in {found:#?}"))
    }

    /// Asserts that `repair --yes` mends a mode: it is gone afterwards, and `undo` brings the tree
    /// back.
    pub fn mends(&self, mode: &str) -> Result<Ran> {
        self.mends_with(mode, &["repair", "--yes"])
    }

    /// The same for a mode whose remedy asks first: `repair --yes` names it and leaves it out,
    /// and `--allow` with the mode mends it.
    pub fn mends_when_allowed(&self, mode: &str) -> Result<Ran> {
        let ran = self.rescue(&["repair", "--yes"])?;
        let is_named = ran.stdout.contains(&format!("--allow {mode}"));
        let is_left = self.modes()?.iter().any(|left| left == mode);
        ensure!(ran.code == 1 && is_named && is_left, "{}", ran.transcript());
        self.mends_with(mode, &["repair", "--yes", "--allow", mode])
    }

    fn mends_with(&self, mode: &str, words: &[&str]) -> Result<Ran> {
        let before = self.sums()?;
        let ran = self.rescue(words)?;
        let left = self.modes()?;
        ensure!(
            !left.iter().any(|left| left == mode),
            "{}",
            ran.transcript()
        );
        let undone = self.rescue(&["undo", "--yes"])?;
        ensure!(
            undone.code == 0 && self.sums()? == before,
            "{}",
            undone.transcript()
        );
        let ran = self.rescue(words)?;
        Ok(ran)
    }

    /// What is in every file, and where links lead, without the records of repairs.
    pub fn sums(&self) -> Result<String> {
        let script = "cd \"$1\" && find . -path ./var/lib/rescue -prune -o \\( -type f -exec \
            sha256sum {} + \\) -o \\( -type l -printf '%p -> %l\\n' \\) | sort";
        let ran = Cmd::new("bash")
            .args(["-c", script, "sums"])
            .arg(self.root())
            .ok()?;
        Ok(ran.stdout)
    }
}
