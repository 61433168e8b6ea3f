//! What is written, and how: one JSON document a line, on disk before anybody says so.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

use walgate_sink::{Event, PayloadFormat};

/// The event as a line, or why it cannot be one.
pub fn line(event: &Event) -> Result<Vec<u8>, &'static str> {
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let payload = match (&event.payload, event.format) {
        (None, _) => "null".to_owned(),
        // JSON as PostgreSQL sent it. A line break outside of its strings is white space, and inside it is escaped.
        (Some(_), PayloadFormat::Json) => String::from_utf8_lossy(event.body()).replace(['\n', '\r'], " "),
        (Some(_), PayloadFormat::Text) => text(&String::from_utf8_lossy(event.body())),
        _ => return Err("this sink writes text, and the payload is binary"),
    };
    let key = event.key.as_ref().map_or("null".to_owned(), |key| text(key));
    let (id, event_type) = (text(&event.id), text(&event.event_type));
    Ok(format!("{{\"id\":{id},\"event_type\":{event_type},\"key\":{key},\"payload\":{payload}}}\n").into_bytes())
}

/// Appends whole lines to a file of this name, and returns when they are on disk.
pub fn append(folder: &Path, name: &str, lines: &[u8]) -> io::Result<()> {
    let path = folder.join(name);
    let is_new = !path.exists();
    let mut file = OpenOptions::new().create(true).append(true).read(true).open(&path)?;
    // A crash, or a full disk, can leave half a line: it gets an end, so that it spoils no other.
    if ends_within_line(&mut file)? {
        file.write_all(b"\n")?;
    }
    file.write_all(lines)?;
    file.sync_data()?;
    if is_new {
        // A new file is there after a power failure only if its folder was written, too.
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

fn ends_within_line(file: &mut File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}
