//! Where the program's own actors meet the broker: an actor that takes [`Publish`] and [`PublishBatch`], and the
//! message [`Deliver`] that a subscribed actor gets.

use std::sync::{Arc, OnceLock, Weak};

use actix::{Actor, Addr, Context, Handler, Message as ActixMessage, ResponseFuture, Supervised};

use super::supervisor::Identity;
use crate::broker::Keeper;
use crate::consumer::Received;
use crate::error::{Error, Result};
use crate::message::{Message, Receipt};
use crate::producer::Producer;
use crate::shared::Shared;

pub(crate) const KIND: &str = "gateway";

/// Sends a message to a topic; answered when it is stored as safely as the topic asks.
#[derive(Debug, ActixMessage)]
#[rtype(result = "Result<Receipt>")]
pub struct Publish {
    /// The topic.
    pub topic: String,
    /// The message.
    pub message: Message,
}

/// Sends messages to a topic, all or none.
#[derive(Debug, ActixMessage)]
#[rtype(result = "Result<Vec<Receipt>>")]
pub struct PublishBatch {
    /// The topic.
    pub topic: String,
    /// The messages.
    pub messages: Vec<Message>,
}

/// A message for a subscribed actor. `Ok` acknowledges it; `Err` has it delivered again, with the reason in the logs.
#[derive(Debug, ActixMessage)]
#[rtype(result = "std::result::Result<(), String>")]
pub struct Deliver {
    /// The message.
    pub message: Received,
}

/// See [`Broker::gateway`](crate::Broker::gateway). Supervised like all actors; it keeps nothing.
#[derive(Debug)]
pub struct GatewayActor {
    shared: Arc<Shared>,
    keeper: Arc<OnceLock<Weak<Keeper>>>,
}

impl GatewayActor {
    /// Starts it; it works once it is told who keeps the broker.
    pub(crate) fn start(shared: &Arc<Shared>) -> (Addr<Self>, Arc<OnceLock<Weak<Keeper>>>) {
        let keeper = Arc::new(OnceLock::new());
        let actor = Self { shared: Arc::clone(shared), keeper: Arc::clone(&keeper) };
        let identity = Identity::new(KIND, "gateway");
        let address = shared.supervision.start(shared.arbiters.carrier(), identity, move || actor, || {});
        (address, keeper)
    }

    fn keeper(&self) -> Result<Arc<Keeper>> {
        self.keeper.get().and_then(Weak::upgrade).ok_or_else(|| Error::closed("the broker"))
    }
}

impl Actor for GatewayActor {
    type Context = Context<Self>;
}

impl Supervised for GatewayActor {}

async fn producer(keeper: Result<Arc<Keeper>>, topic: &str) -> Result<Producer> {
    let keeper = keeper?;
    let topic = keeper.topic(topic).await?;
    Ok(Producer::new(keeper, topic))
}

impl Handler<Publish> for GatewayActor {
    type Result = ResponseFuture<Result<Receipt>>;

    fn handle(&mut self, m: Publish, _: &mut Context<Self>) -> Self::Result {
        self.shared.probe(KIND, "gateway", "Publish");
        let keeper = self.keeper();
        Box::pin(async move { producer(keeper, &m.topic).await?.send(m.message).await })
    }
}

impl Handler<PublishBatch> for GatewayActor {
    type Result = ResponseFuture<Result<Vec<Receipt>>>;

    fn handle(&mut self, m: PublishBatch, _: &mut Context<Self>) -> Self::Result {
        self.shared.probe(KIND, "gateway", "PublishBatch");
        let keeper = self.keeper();
        Box::pin(async move { producer(keeper, &m.topic).await?.send_batch(m.messages).await })
    }
}
