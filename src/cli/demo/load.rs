//! The customers: they order, and send again what was not answered, as a browser or a mobile app would.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use uuid::Uuid;
use walgate_example_orders::NewOrder;

use super::{super::fetch, Failure, PATIENCE, show::Progress};

/// Customers who order at the same time.
const CUSTOMERS: u32 = 6;
/// Pause of a customer between two orders: a load that lasts long enough for something to happen.
const PAUSE: Duration = Duration::from_millis(12);

/// Places so many orders at `address`; returns when each one was confirmed.
pub async fn place_orders(address: &str, orders: u32, progress: &Progress) -> Result<(), Failure> {
    let done = AtomicU64::new(0);
    let customers = (0..CUSTOMERS).map(|customer| {
        let done = &done;
        async move {
            for number in (customer..orders).step_by(CUSTOMERS as usize) {
                let order = NewOrder {
                    id: Uuid::new_v4(),
                    customer: format!("customer-{customer}"),
                    item: format!("book-{}", number % 50),
                    quantity: 1 + i32::try_from(number % 3).unwrap_or(0),
                };
                place(address, &order).await?;
                progress.at(done.fetch_add(1, Ordering::Relaxed) + 1);
                tokio::time::sleep(PAUSE).await;
            }
            Ok::<_, Failure>(())
        }
    });
    futures_util::future::try_join_all(customers).await.map(|_| ())
}

/// Sends the order until the service says that it has it: the id makes a repeat harmless.
async fn place(address: &str, order: &NewOrder) -> Result<(), Failure> {
    let body = serde_json::to_string(order).map_err(|error| error.to_string())?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = fetch::post_json(address, "/orders", &body).await;
        match answer {
            Ok((200 | 201, _)) => return Ok(()),
            _ if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(50)).await,
            Ok((code, body)) => return Err(format!("the order service answers {code}: {body}")),
            Err(error) => return Err(format!("the order service does not answer: {error}")),
        }
    }
}
