//! An HTTP service with the broker inside: orders come by POST, a group of consumers inside the service processes them.

#![allow(clippy::print_stdout, reason = "a program for a terminal talks to it")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::Parser;
use cuemq::{Broker, ErrorKind, Message, Producer, Timestamp};
use cuemq_examples::store::StoreArguments;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

/// Longest answer that the program reads from its own service, in bytes.
const MAX_ANSWER_BYTES: u64 = 1 << 20;
/// How long the orders may take to be processed.
const PATIENCE: Duration = Duration::from_secs(10);

/// An HTTP service with the broker inside. Without --serve it sends itself a few requests and ends.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    store: StoreArguments,
    /// A directory to keep, instead of a temporary one that is removed at the end
    #[arg(long)]
    keep: bool,
    /// Serves on this address, such as 127.0.0.1:8080, until it is interrupted
    #[arg(long)]
    serve: Option<SocketAddr>,
}

/// An order as it comes and goes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct Order {
    id: String,
    amount: String,
}

/// What `GET /statistics` tells.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Statistics {
    state: String,
    engine: String,
    orders: u64,
    processed: u64,
    waiting: u64,
}

/// What `POST /orders` tells.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Accepted {
    message: Option<String>,
    level: String,
}

#[derive(Clone)]
struct Service {
    broker: Broker,
    orders: Producer,
    processed: Arc<AtomicU64>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    cuemq_examples::tracing::show();
    let temporary = tempfile::tempdir().context("no temporary directory")?;
    if !arguments.keep && arguments.serve.is_none() {
        arguments.store.dir = temporary.path().to_owned();
    }
    let broker = arguments.store.open().await?;
    let done = run(&arguments, &broker).await;
    broker.shutdown().await.context("the broker could not be closed cleanly")?;
    done?;
    println!("next: cargo run --release --example embed_axum -- --serve 127.0.0.1:8080");
    Ok(())
}

async fn run(arguments: &Arguments, broker: &Broker) -> Result<()> {
    let (processed, progress) = (Arc::new(AtomicU64::new(0)), watch::Sender::new(0));
    let mut done = progress.subscribe();
    let count = Arc::clone(&processed);
    let consumer = broker.consumer("service").subscribe("orders").build().await?;
    let worker = consumer.spawn(16, move |message| {
        let order = message.json::<Order>().map(|_| progress.send_replace(count.fetch_add(1, Ordering::Relaxed) + 1));
        std::future::ready(order.map(|_| ()))
    });
    let service = Service { broker: broker.clone(), orders: broker.producer("orders").await?, processed };
    let address = arguments.serve.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
    let listener = TcpListener::bind(address).await.with_context(|| format!("nothing can listen on {address}"))?;
    let address = listener.local_addr()?;
    println!("listening on http://{address}");
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, router(service)).with_graceful_shutdown(async {
        // Its end tells the same as a message.
        let _ = stopped.await;
    });
    let server = tokio::spawn(server.into_future());
    let visited = if arguments.serve.is_some() {
        tokio::signal::ctrl_c().await.context("interrupts cannot be received")
    } else {
        visit(address, &mut done).await
    };
    drop(stop);
    server.await.context("the service panicked")?.context("the service ended with an error")?;
    worker.stop();
    worker.join().await?;
    visited
}

fn router(service: Service) -> Router {
    Router::new()
        .route("/orders", post(place_order))
        .route("/orders/{id}", get(find_order))
        .route("/statistics", get(statistics))
        .with_state(service)
}

/// Answers when the order is stored as safely as the topic asks.
async fn place_order(State(service): State<Service>, Json(order): Json<Order>) -> Result<Response, Refusal> {
    let message = Message::json(&order)?.key(&*order.id).sharding_key(&*order.id);
    let receipt = service.orders.send(message).await?;
    let accepted = Accepted { message: receipt.id.map(|id| id.to_string()), level: receipt.level.to_string() };
    Ok((StatusCode::CREATED, Json(accepted)).into_response())
}

/// The newest message with this order's id.
async fn find_order(State(service): State<Service>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let found = service.broker.find_by_key("orders", &id, Timestamp::MIN, Timestamp::MAX, 1)?;
    match found.first() {
        Some(message) => Ok(Json(message.json::<Order>()?).into_response()),
        None => Ok(StatusCode::NOT_FOUND.into_response()),
    }
}

async fn statistics(State(service): State<Service>) -> Result<Json<Statistics>, Refusal> {
    let topic = service.broker.describe_topic("orders")?;
    Ok(Json(Statistics {
        state: service.broker.state().to_string(),
        engine: service.broker.engine_name().to_owned(),
        orders: topic.queues.iter().map(|queue| queue.end.get()).sum(),
        processed: service.processed.load(Ordering::Relaxed),
        waiting: service.broker.describe_group("service").await?.lag(),
    }))
}

/// An error of the broker as an answer.
struct Refusal(cuemq::Error);

impl From<cuemq::Error> for Refusal {
    fn from(error: cuemq::Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self.0.kind() {
            ErrorKind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::Full | ErrorKind::Unavailable | ErrorKind::Closed => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::UnknownTopic | ErrorKind::UnknownGroup => StatusCode::NOT_FOUND,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, self.0.to_string()).into_response()
    }
}

/// Uses the service as a client does and checks its answers.
async fn visit(address: SocketAddr, processed: &mut watch::Receiver<u64>) -> Result<()> {
    let before = ask_statistics(address).await?;
    for number in 1..=3 {
        let order = Order { id: format!("o-{number}"), amount: format!("{number}9.90") };
        let (status, body) = request(address, "POST", "/orders", Some(&order)).await?;
        ensure!(status == 201, "POST /orders answered {status}: {body}");
        let accepted: Accepted = serde_json::from_str(&body)?;
        println!("POST /orders {:<8} -> {status}, {}", order.id, accepted.level);
    }
    let (status, body) = request(address, "GET", "/orders/o-2", None).await?;
    ensure!(status == 200 && serde_json::from_str::<Order>(&body)?.amount == "29.90", "{status}: {body}");
    println!("GET  /orders/o-2       -> {status} {body}");
    let (status, body) = request(address, "GET", "/orders/o-9", None).await?;
    ensure!(status == 404, "an order that nobody placed was answered with {status}: {body}");
    println!("GET  /orders/o-9       -> {status}");
    let nameless = Order { id: String::new(), amount: "1.00".to_owned() };
    let (status, body) = request(address, "POST", "/orders", Some(&nameless)).await?;
    ensure!(status == 422, "an order without an id was answered with {status}: {body}");
    println!("POST /orders (no id)   -> {status} {body}");
    let wait = processed.wait_for(|processed| *processed >= 3);
    tokio::time::timeout(PATIENCE, wait).await.context("the orders were not processed")??;
    let after = ask_statistics(address).await?;
    ensure!(after.orders == before.orders + 3 && after.processed >= 3, "3 orders were placed: {after:?}");
    println!("GET  /statistics       -> {}", serde_json::to_string(&after)?);
    Ok(())
}

async fn ask_statistics(address: SocketAddr) -> Result<Statistics> {
    let (status, body) = request(address, "GET", "/statistics", None).await?;
    ensure!(status == 200, "GET /statistics answered {status}: {body}");
    Ok(serde_json::from_str(&body)?)
}

/// One HTTP request; the answer's status and body.
async fn request(address: SocketAddr, method: &str, path: &str, order: Option<&Order>) -> Result<(u16, String)> {
    let body = order.map(serde_json::to_string).transpose()?.unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(address).await.context("the service does not listen")?;
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER_BYTES).read_to_string(&mut answer).await?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("no HTTP answer: {answer:?}") };
    let status = head.split(' ').nth(1).context("no status in the answer")?.parse()?;
    Ok((status, body.to_owned()))
}
