//! New keys for a whole plan, made together on all cores when the first of them is wanted.

use anyhow::{Context, Result};
use std::cell::RefCell;
use std::rc::Rc;

use super::key::{Algorithm, PrivateKey, generate_all};
use crate::base::ui::Ui;

/// Keys that remedies ordered; none exists before [`KeyPool::key`] is called for one. Made once:
/// preparing the same remedy again gives the same key.
#[derive(Debug, Default)]
pub struct KeyPool {
    wanted: RefCell<Vec<Algorithm>>,
    made: RefCell<Vec<Rc<PrivateKey>>>,
}

/// An ordered key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order(usize);

impl KeyPool {
    /// Orders a key for later.
    pub fn order(&self, algorithm: Algorithm) -> Order {
        let mut wanted = self.wanted.borrow_mut();
        wanted.push(algorithm.renewed());
        Order(wanted.len() - 1)
    }

    /// The ordered key; makes all that were ordered and are missing.
    pub fn key(&self, order: Order, ui: &dyn Ui) -> Result<Rc<PrivateKey>> {
        let wanted = self.wanted.borrow();
        let mut made = self.made.borrow_mut();
        let missing = wanted.get(made.len()..).unwrap_or_default();
        if !missing.is_empty() {
            let progress = ui.begin("generating keys", Some(missing.len() as u64));
            made.extend(
                generate_all(missing, progress.as_ref())?
                    .into_iter()
                    .map(Rc::new),
            );
        }
        made.get(order.0)
            .cloned()
            .context("a key that was never ordered")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_each_key_once() {
        let pool = KeyPool::default();
        let first = pool.order(Algorithm::P256);
        let second = pool.order(Algorithm::P384);
        let key = pool.key(second, &crate::base::ui::Silent).unwrap();
        assert_eq!(key.algorithm(), Algorithm::P384);
        assert!(Rc::ptr_eq(
            &key,
            &pool.key(second, &crate::base::ui::Silent).unwrap()
        ));
        let third = pool.order(Algorithm::P256);
        assert_ne!(
            pool.key(first, &crate::base::ui::Silent)
                .unwrap()
                .public_key(),
            pool.key(third, &crate::base::ui::Silent)
                .unwrap()
                .public_key()
        );
    }
}
