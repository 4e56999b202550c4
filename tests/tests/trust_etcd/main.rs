//! A disk that says to be a member of another disk's etcd: what it gets and gives without proof,
//! with real etcd's data.

mod forged;
mod images;
mod keys;
mod parties;
