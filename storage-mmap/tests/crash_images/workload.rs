//! Random work on a store, and a record of what was promised at which moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use cuemq_storage_api::{
    AttributesBuilder, Engine, QueueId, QueueKey, QueueOffset, Record, Result, Timestamp, TopicName, WriteBatch,
};
use cuemq_storage_mmap::files::memory::{Choices, SeededChoices};
use cuemq_storage_mmap::files::{FileLayer, MemoryFiles};
use cuemq_storage_mmap::{MmapEngine, MmapSettings, RetentionSettings};

use crate::ledger::{Ledger, NEWEST, NEWEST_KEY, ROWS};

pub(crate) const TOPICS: [&str; 2] = ["alpha", "beta"];
pub(crate) const KEYS: [&str; 5] = ["k0", "k1", "k2", "k3", "k4"];
const QUEUES_PER_TOPIC: u32 = 2;

/// Settings under which a few dozen batches fill segments, files of consume queues and of the index.
pub(crate) fn settings(choices: &mut SeededChoices) -> MmapSettings {
    let max_bytes = (choices.pick(5) == 0).then_some(24 << 10);
    MmapSettings {
        segment_bytes: [8 << 10, 16 << 10, 32 << 10][choices.pick(3)],
        allocate_step_bytes: 4 << 10,
        prepare_bytes: 0,
        consume_queue_entries: 8,
        index_slots: 60,
        index_entries: 30,
        retention: RetentionSettings { max_bytes, ..RetentionSettings::default() },
        disk_full_percent: 100,
        checkpoint_after_bytes: [1, 2000, 10_000][choices.pick(3)],
        table_memory_bytes: [1000, 64 << 20][choices.pick(2)],
    }
}

/// What was promised up to a moment of the file layer.
#[derive(Clone, Copy, Debug)]
struct Promise {
    moment: u64,
    /// So many batches survive every crash from then on.
    durable: usize,
    /// So many batches may have reached the disk from then on, each in part or whole.
    begun: usize,
}

/// One opening of a store, from its opening to its end.
#[derive(Debug)]
pub(crate) struct Life<'a> {
    pub(crate) engine: MmapEngine,
    pub(crate) files: MemoryFiles,
    pub(crate) ledger: Ledger,
    /// The highest minimum that retention has shown, per queue.
    pub(crate) expired: BTreeMap<QueueKey, u64>,
    promises: Vec<Promise>,
    clock: i64,
    numbers: &'a mut u64,
}

impl<'a> Life<'a> {
    /// Begins with a store that was just opened on a layer that began to record before; what `ledger` has was durable
    /// by then.
    pub(crate) fn begin(engine: MmapEngine, files: MemoryFiles, ledger: Ledger, numbers: &'a mut u64) -> Result<Self> {
        let durable = ledger.len();
        let promise = Promise { moment: 0, durable, begun: durable };
        let clock = i64::try_from(*numbers).expect("few batches") * 1000;
        let expired = BTreeMap::new();
        let mut life = Self { engine, files, ledger, expired, promises: vec![promise], clock, numbers };
        life.see_minima()?;
        Ok(life)
    }

    fn see_minima(&mut self) -> Result<()> {
        for (queue, bounds) in self.engine.queues()? {
            self.expired.insert(queue, bounds.start.get());
        }
        Ok(())
    }

    /// The fewest and the most batches that may be there after a crash at a moment.
    pub(crate) fn promised(&self, moment: u64) -> (usize, usize) {
        let kept = self.promises.iter().rev().find(|promise| promise.moment <= moment);
        // A batch whose first write lies at this very moment has not landed anything yet.
        let begun = self.promises.iter().rev().find(|promise| promise.moment < moment);
        let durable = kept.map_or(0, |promise| promise.durable);
        (durable, begun.map_or(durable, |promise| promise.begun).max(durable))
    }

    /// So many batches survive every crash from now on.
    pub(crate) fn durable(&self) -> usize {
        self.promises.last().map_or(0, |promise| promise.durable)
    }

    /// Sets how many batches survive every crash from now on.
    pub(crate) fn promise_durable(&mut self, durable: usize) {
        self.promises.push(Promise { moment: self.files.moment(), durable, begun: self.ledger.len().max(durable) });
    }

    fn promise(&mut self, durable: bool, begun: usize) {
        let before = self.promises.last().map_or(0, |promise| promise.durable);
        let durable = if durable { self.ledger.len() } else { before };
        self.promises.push(Promise { moment: self.files.moment(), durable, begun });
    }

    /// One random step. It draws the same choices whatever the engine answers.
    pub(crate) fn step(&mut self, choices: &mut SeededChoices) -> Result<()> {
        match choices.pick(20) {
            0..12 => self.apply(choices),
            12..16 => self.sync(),
            16..19 => self.maintain(),
            _ => self.trim(choices),
        }
    }

    pub(crate) fn apply(&mut self, choices: &mut SeededChoices) -> Result<()> {
        let mut batch = self.begin_batch(choices);
        for _ in 0..choices.pick(4) {
            let queue = queue(choices);
            batch.append(&queue, self.record(choices));
        }
        for _ in 0..choices.pick(3) {
            let key = [b'a' + u8::try_from(choices.pick(6)).expect("small")];
            if choices.pick(3) == 0 {
                batch.delete(&ROWS, key.to_vec());
            } else {
                batch.put(&ROWS, key.to_vec(), vec![7; choices.pick(300)]);
            }
        }
        if choices.pick(3) == 0 {
            batch.expect_sync();
        }
        self.land(batch)
    }

    fn trim(&mut self, choices: &mut SeededChoices) -> Result<()> {
        let mut batch = self.begin_batch(choices);
        batch.trim(&queue(choices), QueueOffset::new(choices.pick(12) as u64));
        self.land(batch)
    }

    fn begin_batch(&mut self, choices: &mut SeededChoices) -> WriteBatch {
        *self.numbers += 1;
        // Now and then the clock steps back; the engine must not.
        self.clock += choices.pick(2500) as i64 - 300;
        let mut batch = WriteBatch::new(Timestamp::from_millis(self.clock));
        batch.put(&NEWEST, NEWEST_KEY, self.numbers.to_le_bytes().to_vec());
        batch
    }

    fn record(&self, choices: &mut SeededChoices) -> Record {
        // Few are larger than a sector, so that many sectors hold parts of several frames.
        let len = if choices.pick(6) == 0 { choices.pick(3000) } else { choices.pick(200) };
        let mut body = vec![u8::try_from(choices.pick(256)).expect("a byte"); len];
        body.extend_from_slice(&self.numbers.to_le_bytes());
        let mut attributes = AttributesBuilder::default();
        for _ in 0..choices.pick(3) {
            attributes.key(KEYS[choices.pick(KEYS.len())]);
        }
        if choices.pick(2) == 0 {
            attributes.tag("tag");
        }
        let attributes = attributes.build().expect("within limits");
        Record::new(body, Timestamp::from_millis(5)).with_attributes(attributes)
    }

    fn land(&mut self, batch: WriteBatch) -> Result<()> {
        // Begun before the first write of the batch, so that a crash in the middle of it may show it.
        self.promise(false, self.ledger.len() + 1);
        let applied = self.engine.apply(batch.clone())?;
        self.ledger.push(*self.numbers, batch, applied);
        Ok(())
    }

    pub(crate) fn sync(&mut self) -> Result<()> {
        let mark = self.engine.sync()?;
        assert_eq!(mark, self.engine.durable(), "what sync returns is durable");
        self.promise(true, self.ledger.len());
        Ok(())
    }

    pub(crate) fn maintain(&mut self) -> Result<()> {
        let now = Timestamp::from_millis(self.clock);
        self.engine.maintain(now)?;
        self.see_minima()
    }

    /// Closes the store; everything is durable then.
    pub(crate) fn close(&mut self) -> Result<()> {
        self.engine.close()?;
        self.promise(true, self.ledger.len());
        Ok(())
    }
}

pub(crate) fn queue(choices: &mut SeededChoices) -> QueueKey {
    let topic = TopicName::new(TOPICS[choices.pick(TOPICS.len())]).expect("a legal name");
    let queue = u32::try_from(choices.pick(QUEUES_PER_TOPIC as usize)).expect("small");
    QueueKey::new(topic, QueueId::new(queue).expect("small"))
}

/// Opens a store on a layer that stands in for a broken disk or engine, or on the files themselves.
pub(crate) fn open(files: &MemoryFiles, settings: &MmapSettings, plant: Plant) -> Result<MmapEngine> {
    let layer = plant(files.clone());
    MmapEngine::open_with(layer, settings.clone())
}

/// What a test puts between the engine and its files.
pub(crate) type Plant = fn(MemoryFiles) -> Arc<dyn FileLayer>;

/// Nothing; frames are written with positioned writes.
pub(crate) fn sound(files: MemoryFiles) -> Arc<dyn FileLayer> {
    Arc::new(files)
}

/// Nothing; frames are stored into mapped files, but for those behind which a sync is expected.
pub(crate) fn mapped(files: MemoryFiles) -> Arc<dyn FileLayer> {
    Arc::new(files.mapped_for_writing())
}
