//! The tables over SQL.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Filter, HoldKey, Opening, Page, PageLimit, Parcel, ParkingStore, Place, Revived, StoreError};
use crate::control::link::{Link, LinkError};

/// Whose rows, and how the connection is kept.
#[derive(Clone, Debug)]
pub struct SqlStoreOptions {
    /// The slot of the gateway.
    pub slot: String,
    /// The sink; empty for events without a route.
    pub sink: String,
    /// Time that one operation may take, connecting included.
    pub patience: Duration,
    /// A connection that nothing was done on for so long is closed.
    pub idle: Duration,
}

/// The tables over a connection of its own: opened when something is to be done, closed when nothing was for a while.
pub struct SqlStore {}

impl SqlStore {
    /// A store that is not connected yet.
    pub fn new<F, Fut>(options: SqlStoreOptions, connect: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Link, LinkError>> + Send + 'static,
    {
        let _ = (options, connect);
        SqlStore {}
    }
}

fn unwritten<T>() -> BoxFuture<'static, Result<T, StoreError>>
where
    T: Send + 'static,
{
    Box::pin(std::future::ready(Err(StoreError { message: "not written yet".into(), lasting: false })))
}

impl ParkingStore for SqlStore {
    fn open(&self, _: usize) -> BoxFuture<'_, Result<Opening, StoreError>> {
        unwritten()
    }
    fn park(&self, _: Vec<Parcel>) -> BoxFuture<'_, Result<(u64, u64), StoreError>> {
        unwritten()
    }
    fn bury(&self, _: Vec<Parcel>, _: Vec<i64>) -> BoxFuture<'_, Result<(), StoreError>> {
        unwritten()
    }
    fn page(&self, _: Option<Place>, _: PageLimit) -> BoxFuture<'_, Result<Page, StoreError>> {
        unwritten()
    }
    fn page_of(&self, _: HoldKey, _: Option<Place>, _: PageLimit) -> BoxFuture<'_, Result<Page, StoreError>> {
        unwritten()
    }
    fn hold(&self, _: Vec<(i64, HoldKey)>) -> BoxFuture<'_, Result<(), StoreError>> {
        unwritten()
    }
    fn delivered(&self, _: Vec<i64>) -> BoxFuture<'_, Result<(), StoreError>> {
        unwritten()
    }
    fn revive(&self, _: Filter, _: i64, _: String, _: usize) -> BoxFuture<'_, Result<Revived, StoreError>> {
        unwritten()
    }
}
