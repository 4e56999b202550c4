//! The files that a kubelet authenticates with: a dated file with certificate and key, the link to
//! it, and a kubeconfig that leads there. Source: client-go's
//! util/certificate/certificate_store.go.

use anyhow::{Context as _, Result, bail};
use time::OffsetDateTime;

use crate::change::Draft;
use crate::change::{Attributes, Change, Content, Expect};
use crate::guest::{Guest, GuestPath};
use crate::kubeconfig::edit::{NewMaterial, replace_credentials};
use crate::tree::TreeError;

/// Where they belong.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClientFiles<'a> {
    /// `--cert-dir`.
    pub cert_dir: &'a GuestPath,
    /// kubelet.conf.
    pub kubeconfig: &'a GuestPath,
    /// The user whose entry must be changed to lead to the link; `None` where it does already.
    pub user: Option<&'a str>,
}

impl ClientFiles<'_> {
    /// Lays down `pem`: the leaf and its key only, because an expired CA appended there would count
    /// as the kubelet's own expiry.
    pub fn lay_down(&self, draft: &mut Draft, pem: String, now: OffsetDateTime) -> Result<()> {
        for change in Change::make_dirs(&draft.guest, self.cert_dir, 0o755)? {
            draft.push(change)?;
        }
        let dated = self.dated_path(&draft.guest, now)?;
        let real = draft.guest.resolve_parent(&dated)?;
        draft.push(Change::Write {
            path: real,
            content: Content::new(pem),
            attributes: Attributes::Set {
                mode: 0o600,
                uid: 0,
                gid: 0,
            },
            expect: Expect::Absent,
        })?;
        let current = self.cert_dir.join("kubelet-client-current.pem");
        draft.push(Change::symlink(&draft.guest, &current, dated.as_path())?)?;
        if let Some(user) = self.user {
            let old = draft.guest.read(self.kubeconfig)?;
            let file = NewMaterial::File(&current);
            let new = replace_credentials(&old, user, file, file)
                .with_context(|| format!("editing {}", self.kubeconfig))?;
            draft.write(self.kubeconfig, new, 0o600)?;
        }
        Ok(())
    }

    /// `kubelet-client-2026-11-23-09-30-00.pem`, a second later as long as that name is taken. The
    /// kubelet uses local time; only uniqueness matters to it.
    fn dated_path(&self, guest: &Guest, now: OffsetDateTime) -> Result<GuestPath> {
        let mut at = now.to_offset(time::UtcOffset::UTC);
        for _ in 0..3600 {
            let (date, clock) = (at.date(), at.time());
            let path = self.cert_dir.join(format!(
                "kubelet-client-{:04}-{:02}-{:02}-{:02}-{:02}-{:02}.pem",
                date.year(),
                u8::from(date.month()),
                date.day(),
                clock.hour(),
                clock.minute(),
                clock.second()
            ));
            match guest.lstat(&path) {
                Err(TreeError::NotFound(_)) => return Ok(path),
                Err(error) => return Err(error.into()),
                Ok(_) => at += time::Duration::SECOND,
            }
        }
        bail!("no free name for a new certificate in {}", self.cert_dir)
    }
}
