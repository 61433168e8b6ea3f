//! `cargo run -p walgate-example-orders`: the order service on port 8080, with the database of `DATABASE_URL`.
//! The tables are made by `psql "$DATABASE_URL"` with the text of `SCHEMA` in `lib.rs`.

use std::error::Error;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("DATABASE_URL").unwrap_or_else(|_| "postgres://localhost/shop".to_owned());
    let (db, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    axum::serve(listener, walgate_example_orders::service(db)).await?;
    Ok(())
}
