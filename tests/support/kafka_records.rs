//! Kafka's record batches (magic 2) by hand, both ways, and the partition that Java's producer gives to a key.

use sha2::{Digest, Sha256};

/// A record as a partition holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// The id and the epoch of the idempotent producer that wrote it.
    pub producer: Option<(i64, i16)>,
}

impl Record {
    /// The first header of this name, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(header, _)| header == name)?;
        value.as_deref().map(|bytes| std::str::from_utf8(bytes).expect("UTF-8 in a header"))
    }

    /// The event's id.
    pub fn id(&self) -> &str {
        self.header("id").expect("the header id")
    }

    /// The key as text.
    pub fn key_text(&self) -> Option<&str> {
        self.key.as_deref().map(|bytes| std::str::from_utf8(bytes).expect("UTF-8 in a key"))
    }

    /// SHA-256 of the value, in hex; a null's is that of nothing.
    pub fn hash(&self) -> String {
        let digest = Sha256::digest(self.value.as_deref().unwrap_or_default());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What a piece of a log holds.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Without the markers that end transactions; those of aborted transactions are among them.
    pub records: Vec<Record>,
    /// The offset behind the last whole batch.
    pub next: Option<i64>,
}

/// Reads bytes from their beginning.
pub struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    #[track_caller]
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        assert!(count <= self.0.len(), "{count} bytes are to follow, and {} are left", self.0.len());
        let (head, tail) = self.0.split_at(count);
        self.0 = tail;
        head
    }

    #[track_caller]
    pub fn i8(&mut self) -> i8 {
        self.take(1)[0] as i8
    }

    #[track_caller]
    pub fn i16(&mut self) -> i16 {
        i16::from_be_bytes(self.take(2).try_into().expect("two bytes"))
    }

    #[track_caller]
    pub fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.take(4).try_into().expect("four bytes"))
    }

    #[track_caller]
    pub fn i64(&mut self) -> i64 {
        i64::from_be_bytes(self.take(8).try_into().expect("eight bytes"))
    }

    /// Zigzag, seven bits in a byte, the lowest first.
    #[track_caller]
    fn varint(&mut self) -> i64 {
        let mut bits = 0_u64;
        for shift in (0..70).step_by(7) {
            let byte = self.take(1)[0];
            bits |= u64::from(byte & 0x7f).wrapping_shl(shift);
            if byte & 0x80 == 0 {
                return (bits >> 1) as i64 ^ -((bits & 1) as i64);
            }
        }
        panic!("a varint of more than ten bytes");
    }

    /// Bytes behind their length as a varint; -1 for null.
    #[track_caller]
    fn varbytes(&mut self) -> Option<Vec<u8>> {
        let length = self.varint();
        (length != -1).then(|| self.take(usize::try_from(length).expect("a length")).to_vec())
    }
}

fn varint(out: &mut Vec<u8>, value: i64) {
    let mut bits = ((value << 1) ^ (value >> 63)) as u64;
    while bits > 0x7f {
        out.push(bits as u8 | 0x80);
        bits >>= 7;
    }
    out.push(bits as u8);
}

fn varbytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    varint(out, bytes.map_or(-1, |bytes| bytes.len() as i64));
    out.extend_from_slice(bytes.unwrap_or_default());
}

/// Position and length of the parts of a batch.
const CRC_AT: usize = 17;
const HEAD: usize = 61;

/// One batch, uncompressed, of a producer that is not idempotent. Partition, offset and producer do not count.
pub fn encode(records: &[Record]) -> Vec<u8> {
    let first = records.first().expect("a record").timestamp;
    let last = records.iter().map(|record| record.timestamp).max().expect("a record");
    let count = i32::try_from(records.len()).expect("a batch");
    let mut batch = Vec::new();
    batch.extend(0_i64.to_be_bytes());
    // Its length and its checksum are written over these; the epoch of the leader is the broker's to set.
    batch.extend([0; 4]);
    batch.extend((-1_i32).to_be_bytes());
    batch.push(2);
    batch.extend([0; 4]);
    batch.extend(0_i16.to_be_bytes());
    batch.extend((count - 1).to_be_bytes());
    batch.extend(first.to_be_bytes());
    batch.extend(last.to_be_bytes());
    batch.extend((-1_i64).to_be_bytes());
    batch.extend((-1_i16).to_be_bytes());
    batch.extend((-1_i32).to_be_bytes());
    batch.extend(count.to_be_bytes());
    for (offset, record) in records.iter().enumerate() {
        let mut body = vec![0];
        varint(&mut body, record.timestamp - first);
        varint(&mut body, offset as i64);
        varbytes(&mut body, record.key.as_deref());
        varbytes(&mut body, record.value.as_deref());
        varint(&mut body, record.headers.len() as i64);
        for (name, value) in &record.headers {
            varbytes(&mut body, Some(name.as_bytes()));
            varbytes(&mut body, value.as_deref());
        }
        varbytes(&mut batch, Some(&body));
    }
    let length = i32::try_from(batch.len() - 12).expect("a batch");
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c(&batch[CRC_AT + 4..]);
    batch[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
    batch
}

/// All whole batches of what a fetch has brought: the last may be torn.
#[track_caller]
pub fn decode(partition: i32, mut log: &[u8]) -> Decoded {
    let mut decoded = Decoded::default();
    while log.len() >= 12 {
        let length = i32::from_be_bytes(log[8..12].try_into().expect("four bytes"));
        let size = 12 + usize::try_from(length).expect("a batch's length");
        if log.len() < size {
            break;
        }
        let (batch, rest) = log.split_at(size);
        decoded.next = Some(decode_batch(partition, batch, &mut decoded.records));
        log = rest;
    }
    decoded
}

/// Appends a batch's records; the offset behind it.
#[track_caller]
fn decode_batch(partition: i32, batch: &[u8], records: &mut Vec<Record>) -> i64 {
    assert!(batch.len() >= HEAD, "a batch of {} bytes", batch.len());
    let mut head = Cursor(batch);
    let base_offset = head.i64();
    head.take(8);
    assert_eq!(head.i8(), 2, "the magic of the batch at {base_offset} of partition {partition}");
    let crc = head.i32() as u32;
    assert_eq!(crc32c(head.0), crc, "the CRC of the batch at {base_offset} of partition {partition}");
    let attributes = head.i16();
    let next = base_offset + i64::from(head.i32()) + 1;
    let (first, last) = (head.i64(), head.i64());
    let producer = Some((head.i64(), head.i16())).filter(|(id, _)| *id >= 0);
    head.take(4);
    let count = head.i32();
    if attributes & 0x20 != 0 {
        return next;
    }
    let codec = ["none", "gzip", "snappy", "lz4", "zstd"].get(usize::from(attributes as u16 & 7));
    assert_eq!(
        codec,
        Some(&"none"),
        "the batch at {base_offset} is compressed, which is not read here: create the topic with \
         compression.type=uncompressed, and the broker unpacks it"
    );
    for _ in 0..count {
        let body = head.varbytes().expect("a record");
        let mut body = Cursor(&body);
        body.take(1);
        let since = body.varint();
        let offset = base_offset + body.varint();
        let (key, value) = (body.varbytes(), body.varbytes());
        let headers = (0..body.varint()).map(|_| {
            let name = body.varbytes().expect("a header's name");
            (String::from_utf8(name).expect("UTF-8 in a header's name"), body.varbytes())
        });
        let headers = headers.collect();
        assert!(body.0.is_empty(), "bytes behind the record at {offset}");
        // The broker's clock, where the topic has `message.timestamp.type=LogAppendTime`.
        let timestamp = if attributes & 8 != 0 { last } else { first + since };
        records.push(Record { partition, offset, timestamp, key, value, headers, producer });
    }
    assert!(head.0.is_empty(), "bytes behind the records of the batch at {base_offset}");
    next
}

/// CRC-32C (Castagnoli).
pub fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut at = 0;
        while at < 256 {
            let mut value = at as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0x82f6_3b78 } else { value >> 1 };
                bit += 1;
            }
            table[at] = value;
            at += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, byte| crc >> 8 ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize])
}

/// The partition in which Java's default partitioner puts a record with this key.
pub fn partition_of(key: &[u8], partitions: u32) -> i32 {
    ((murmur2(key) as u32 & 0x7fff_ffff) % partitions) as i32
}

/// MurmurHash2 with Kafka's seed.
pub fn murmur2(bytes: &[u8]) -> i32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ bytes.len() as u32;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes(word.try_into().expect("four bytes")).wrapping_mul(M);
        k = (k ^ k >> 24).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        hash ^= rest.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ hash >> 13).wrapping_mul(M);
    (hash ^ hash >> 15) as i32
}
