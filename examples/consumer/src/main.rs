//! `cargo run -p walgate-example-consumer`: a consumer on port 8081 that writes into the table `confirmation_emails` of
//! `DATABASE_URL` and checks signatures against `WEBHOOK_SECRET` (`whsec_...`).

use std::error::Error;

use walgate_example_consumer::{schema, service};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("DATABASE_URL").unwrap_or_else(|_| "postgres://localhost/shop".to_owned());
    let secret =
        std::env::var("WEBHOOK_SECRET").map_err(|_| "WEBHOOK_SECRET is not set: whsec_ and base64")?.parse()?;
    let (db, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    db.batch_execute(&schema("IF NOT EXISTS confirmation_emails")).await?;
    let consumer = service(db, "confirmation_emails", Some(secret)).await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8081").await?;
    axum::serve(listener, consumer).await?;
    Ok(())
}
