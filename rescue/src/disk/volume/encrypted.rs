//! What is inside an encrypted volume, as a volume like any other.

use std::sync::Arc;

use anyhow::{Context, Result};

use super::Volume;
use crate::disk::Backing;
use crate::disk::ReadAt;
use crate::disk::luks::{self, Decrypted, LuksError};
use crate::disk::partition::PartitionKind;
use crate::disk::probe::{self, Content};
use crate::disk::stack::{Layer, Stack};

/// Whether there is something to unlock.
pub fn is_encrypted(volume: &Volume) -> bool {
    matches!(
        volume.probe.as_ref().map(|probe| &probe.content),
        Some(Content::Luks(_))
    )
}

/// Unlocks a volume that [`is_encrypted`].
///
/// # Errors
/// I/O errors. The inner error is for the user: no key, the wrong one, a kind that is not read.
pub fn unlock(volume: &Volume) -> Result<Result<Volume, LuksError>> {
    let crypt = match luks::unlock(&volume.name, &volume.bytes) {
        Ok(crypt) => crypt,
        Err(LuksError::Io(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            return Ok(Err(LuksError::Corrupt(
                "it was cut off, copy it again".into(),
            )));
        }
        Err(LuksError::Io(error)) => {
            return Err(error).with_context(|| format!("reading {}", volume.name));
        }
        Err(error) => return Ok(Err(error)),
    };
    let name = format!("{}, decrypted", volume.name);
    let decrypted =
        Decrypted::new(Arc::clone(&volume.bytes), crypt.clone()).context("an unknown cipher")?;
    let bytes: Arc<dyn ReadAt> = Arc::new(decrypted);
    let probe =
        probe::probe(bytes.as_ref()).with_context(|| format!("looking what {name} holds"))?;
    let stack = Stack {
        below: vec![volume.backing.clone()],
        layer: Layer::Encrypted(crypt),
    };
    Ok(Ok(Volume {
        name,
        disk: volume.disk,
        number: None,
        part_uuid: None,
        part_label: None,
        partition_kind: PartitionKind::Other,
        probe,
        bytes,
        backing: Backing::Stacked(Box::new(stack)),
        logical: None,
        luks_uuid: volume.uuid().map(str::to_owned),
    }))
}
