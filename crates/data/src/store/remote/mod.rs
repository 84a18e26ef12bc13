//! Stores behind a network: what [`Address`] names, read through `object_store` in ranges, side by side, again after failures,
//! and kept on the local disk.
//!
//! | module | what |
//! | --- | --- |
//! | `connect` | a client, with credentials from the environment |
//! | `fetch` | attempts, pauses, the deadline; what an error means |
//! | `blocks` | the unit of reading, in memory |
//! | `pieces` | from pieces of files to blocks, and back |
//! | `disk` | blocks on this disk, for all runs |
//! | `hub` | which files a data set of the hub has |
//!
//! Calls come from decoding threads and block; the requests run on tokio's threads. An object is known by its size and its version
//! (etag, or else the time of its change) when it was listed; an answer about another one is [`StoreError::Changed`].

mod blocks;
mod connect;
mod disk;
mod fetch;
mod hub;
mod pieces;

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt};

use self::blocks::{BLOCK_BYTES, Blocks, Key, MEMORY_BYTES, Order};
use self::disk::DiskCache;
use self::fetch::{Fault, Patience};
use self::pieces::{assemble, block_keys, requests};
use super::address::{Address, Scheme};
use super::options::StoreOptions;
use super::{FileInfo, Listing, Piece, Store, StoreError, in_order, sizes};
use crate::error::{DataError, Refusal};

/// Requests side by side, of one store: enough to fill a fast network in spite of its answers' delay.
const REQUESTS: usize = 16;
/// So many names are asked for one by one, with some requests side by side; of more a listing has a thousand in an answer.
const ASKED_FOR_EACH: usize = 1000;
/// Pieces that a caller may ask for at once.
const PIECES: usize = 32;
/// The longest silence of a server within one attempt; less where the whole deadline is short.
const SILENCE: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub(super) struct RemoteStore {
    /// The folder that names are relative to.
    folder: Address,
    client: Arc<dyn ObjectStore>,
    patience: Patience,
    blocks: Blocks,
    disk: Option<DiskCache>,
    cache: Option<PathBuf>,
    /// The files of a data set of the hub: one commit, asked for once.
    files: Option<Vec<FileInfo>>,
}

impl RemoteStore {
    /// The store at the folder that `address` names. Touches the network only for the hub, which has to say what a revision is.
    pub(super) fn open(address: Address, options: &StoreOptions) -> Result<Self, DataError> {
        let patience = Patience::new(options.retry_for, options.stop.clone());
        let silence = SILENCE.min(options.retry_for / 4).max(Duration::from_millis(100));
        let refused = |refusal| DataError::Refused { place: address.place().into(), refusal };
        let (client, files) = match address.scheme {
            Scheme::Hub => {
                let there = hub::open(&address, &patience)?;
                let client = connect::connect(&there.address(&address), silence, there.bearer.as_deref());
                (client.map_err(refused)?, Some(there.files))
            }
            _ => (connect::connect(&address, silence, None).map_err(refused)?, None),
        };
        let cache = options.cache_folder();
        let disk = cache.as_ref().filter(|_| options.cache_bytes > 0);
        let disk = disk.map(|folder| DiskCache::new(folder.join("blocks"), options.cache_bytes));
        let blocks = Blocks::new(MEMORY_BYTES);
        Ok(Self { folder: address, client, patience, blocks, disk, cache, files })
    }

    /// The store at a folder below this one.
    pub(super) fn enter(mut self, name: &str) -> Self {
        let below =
            |file: &FileInfo| Some(FileInfo { name: file.name.strip_prefix(name).ok()?.to_owned(), ..file.clone() });
        self.files = self.files.map(|files| files.iter().filter_map(below).collect());
        self.folder = self.folder.join(name);
        self
    }

    /// The path of an object for the client. Of a web server's address it is decoded: the client encodes it again.
    fn object(&self, name: &Path) -> Result<ObjectPath, StoreError> {
        let path = self.folder.join(&name.display().to_string()).path;
        let path = path.trim_matches('/');
        let parsed = match self.folder.scheme {
            Scheme::Web => ObjectPath::from_url_path(path),
            _ => ObjectPath::parse(path),
        };
        let place = || self.place(Path::new(""));
        parsed.map_err(|error| StoreError::Refused { place: place(), refusal: Refusal::Other(error.to_string()) })
    }

    /// What the store says of one object; `None` where it is not there.
    async fn look_up(&self, name: &Path) -> Result<Option<FileInfo>, StoreError> {
        let (place, object) = (self.place(name), self.object(name)?);
        let attempt = || async {
            let found = self.client.head(&object).await;
            match found {
                // A signature may be good for reading alone, and a server may know no other question.
                Err(error)
                    if self.folder.scheme == Scheme::Web && !matches!(error, object_store::Error::NotFound { .. }) =>
                {
                    let range = Some(GetRange::Bounded(0..1));
                    Ok(self.client.get_opts(&object, GetOptions { range, ..GetOptions::default() }).await?.meta)
                }
                found => Ok(found?),
            }
        };
        match self.patience.patiently(&place, attempt).await {
            Ok(about) => Ok(Some(info(name.to_owned(), &about))),
            Err(StoreError::Refused { refusal: Refusal::Missing, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Everything below the folder, page after page; a page that fails is asked for again from where the last one ended.
    async fn list_all(&self) -> Result<Vec<FileInfo>, StoreError> {
        let place = self.place(Path::new(""));
        let base = self.object(Path::new(""))?;
        let prefix = Some(&base).filter(|base| !base.as_ref().is_empty());
        let found = std::sync::Mutex::new(Vec::<ObjectMeta>::new());
        let lock = || found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let attempt = || async {
            let last = lock().last().map(|about| about.location.clone());
            let mut pages = match &last {
                Some(last) => self.client.list_with_offset(prefix, last),
                None => self.client.list(prefix),
            };
            while let Some(about) = pages.try_next().await? {
                lock().push(about);
            }
            Ok::<(), Fault>(())
        };
        self.patience.patiently(&place, attempt).await?;
        let skip = base.parts().count();
        let relative = |about: &ObjectMeta| {
            let name: PathBuf = about.location.parts().skip(skip).map(|part| part.as_ref().to_owned()).collect();
            let hidden = name.iter().any(|part| part.as_encoded_bytes().starts_with(b"."));
            (!hidden && !name.as_os_str().is_empty()).then(|| info(name, about))
        };
        let files = lock().iter().filter_map(relative).collect();
        Ok(files)
    }

    /// The blocks that are not in memory: from the disk, or else from the store. What is wrong with an object is noted in `bad`;
    /// an error is about the store as a whole.
    fn fetch(
        &self,
        order: &mut Order<'_>,
        files: &HashMap<[u8; 16], &FileInfo>,
        bad: &mut HashMap<[u8; 16], StoreError>,
    ) -> Result<(), StoreError> {
        let disk = |key: &Key| self.disk.as_ref().filter(|_| files[&key.object].version != 0);
        for key in order.to_fetch.clone() {
            if let Some(block) = disk(&key).and_then(|disk| disk.get(&key.name())) {
                order.came(key, block);
            }
        }
        let requests = requests(&order.to_fetch);
        if requests.is_empty() {
            return Ok(());
        }
        let one = |(first, count): (Key, u64)| async move {
            let file = files[&first.object];
            let start = first.number * BLOCK_BYTES;
            let end = (start + count * BLOCK_BYTES).min(file.size);
            (first, self.range(file, start..end).await)
        };
        self.patience.wait(async {
            let mut answers = stream::iter(requests).map(one).buffer_unordered(REQUESTS);
            while let Some((first, answer)) = answers.next().await {
                let bytes = match answer {
                    Ok(bytes) => bytes,
                    Err(error) if error.is_of_a_file() => {
                        bad.insert(first.object, error);
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                let alone = bytes.len() as u64 <= BLOCK_BYTES;
                for (number, block) in (first.number..).zip(bytes.chunks(BLOCK_BYTES as usize)) {
                    let key = Key { number, ..first };
                    disk(&key).inspect(|disk| disk.put(&key.name(), block));
                    // A copy, so that one block does not keep its neighbours in memory.
                    order.came(key, if alone { bytes.clone() } else { Bytes::copy_from_slice(block) });
                }
            }
            Ok(())
        })?
    }

    /// The blocks of all pieces, from wherever they are.
    fn gather(&self, pieces: &[Piece<'_>]) -> Gathered {
        let keys: Vec<[u8; 16]> = pieces.iter().map(|piece| self.key_of(piece.file)).collect();
        let files: HashMap<_, _> = keys.iter().copied().zip(pieces.iter().map(|piece| piece.file)).collect();
        let wanted: BTreeSet<Key> =
            keys.iter().zip(pieces).flat_map(|(&object, piece)| block_keys(object, piece)).collect();
        let (mut there, mut bad, mut lost) = (HashMap::new(), HashMap::new(), None);
        let mut left: Vec<Key> = wanted.into_iter().collect();
        while !left.is_empty() && lost.is_none() {
            let mut order = self.blocks.order(left);
            lost = self.fetch(&mut order, &files, &mut bad).err();
            left = if lost.is_none() { order.await_others() } else { Vec::new() };
            left.retain(|key| !bad.contains_key(&key.object));
            there.extend(std::mem::take(&mut order.there));
        }
        Gathered { keys, there, bad, lost }
    }

    /// Some bytes of an object, with one request at a time.
    async fn range(&self, file: &FileInfo, range: Range<u64>) -> Result<Bytes, StoreError> {
        let (place, object) = (self.place(&file.name), self.object(&file.name)?);
        let attempt = || async {
            let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
            let answer = self.client.get_opts(&object, options).await?;
            if answer.meta.size != file.size {
                return Err(Fault::Changed(sizes(file.size, answer.meta.size)));
            }
            // The hub's files come from other servers, which have etags of their own; a commit does not change.
            if self.files.is_none() && version(&answer.meta) != file.version {
                return Err(Fault::Changed("it has another version (etag or time of change)".to_owned()));
            }
            let wanted = (range.end - range.start) as usize;
            let (mut bytes, mut body) = (BytesMut::with_capacity(wanted), answer.into_stream());
            while let Some(part) = body.try_next().await? {
                // Nothing says that a server ends where it was asked to.
                if part.len() > wanted - bytes.len() {
                    return Err(Fault::Passing(format!("more bytes came than the {wanted} that were asked for")));
                }
                bytes.extend_from_slice(&part);
            }
            if bytes.len() < wanted {
                return Err(Fault::Passing(format!("{} bytes came instead of {wanted}", bytes.len())));
            }
            Ok(bytes.freeze())
        };
        self.patience.patiently(&place, attempt).await
    }

    /// An object as it was listed, as a key: what has changed has another one.
    fn key_of(&self, file: &FileInfo) -> [u8; 16] {
        let mut hash = blake3::Hasher::new();
        hash.update(self.place(&file.name).as_os_str().as_encoded_bytes());
        hash.update(&file.size.to_le_bytes()).update(&file.version.to_le_bytes());
        let mut key = [0; 16];
        hash.finalize_xof().fill(&mut key);
        key
    }
}

impl Store for RemoteStore {
    fn place(&self, file: &Path) -> PathBuf {
        let folder = self.folder.place();
        if file.as_os_str().is_empty() { folder.into() } else { format!("{folder}/{}", file.display()).into() }
    }

    fn cache(&self) -> Option<&Path> {
        self.cache.as_deref()
    }

    fn find(&self, name: &Path) -> Result<Option<FileInfo>, StoreError> {
        match &self.files {
            Some(files) => Ok(files.iter().find(|file| file.name == name).cloned()),
            None => self.patience.wait(self.look_up(name))?,
        }
    }

    /// A web server lists nothing, and other files of the folder may be millions: so each name is asked for.
    fn find_all(&self, names: &[String]) -> Result<Vec<Option<FileInfo>>, StoreError> {
        let few = self.files.is_none() && names.len() <= ASKED_FOR_EACH;
        if few || self.folder.scheme == Scheme::Web {
            let all = stream::iter(names).map(|name| self.look_up(Path::new(name))).buffered(REQUESTS);
            return self.patience.wait(all.try_collect())?;
        }
        Ok(in_order(self.list()?.files, names))
    }

    fn list(&self) -> Result<Listing, StoreError> {
        let mut files = match &self.files {
            Some(files) => files.clone(),
            None if self.folder.scheme == Scheme::Web => {
                return Err(StoreError::Refused { place: self.place(Path::new("")), refusal: Refusal::NoListing });
            }
            None => self.patience.wait(self.list_all())??,
        };
        if files.is_empty() {
            return Err(StoreError::Refused { place: self.place(Path::new("")), refusal: Refusal::Missing });
        }
        files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Listing { files, passed_over: Vec::new() })
    }

    fn is_far(&self) -> bool {
        true
    }

    fn at_once(&self) -> usize {
        PIECES
    }

    fn read(&self, pieces: &[Piece<'_>]) -> Vec<Result<Bytes, StoreError>> {
        let Gathered { keys, there, bad, lost } = self.gather(pieces);
        let one = |(object, piece): (&[u8; 16], &Piece<'_>)| {
            let beyond =
                || StoreError::failed("read", self.place(&piece.file.name), std::io::ErrorKind::UnexpectedEof.into());
            let why = || bad.get(object).or(lost.as_ref()).map_or_else(beyond, StoreError::again);
            assemble(*object, piece, &there).ok_or_else(why)
        };
        keys.iter().zip(pieces).map(one).collect()
    }

    /// Nothing without a disk: in memory it would displace what is needed now.
    fn will_need(&self, pieces: &[Piece<'_>]) -> Result<(), StoreError> {
        match self.disk.as_ref().and_then(|_| self.gather(pieces).lost) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// What came of a call for pieces.
struct Gathered {
    /// The object of each piece.
    keys: Vec<[u8; 16]>,
    there: HashMap<Key, Bytes>,
    /// What is wrong with an object.
    bad: HashMap<[u8; 16], StoreError>,
    /// Why the rest was not fetched.
    lost: Option<StoreError>,
}

fn info(name: PathBuf, about: &ObjectMeta) -> FileInfo {
    FileInfo { name, size: about.size, version: version(about) }
}

/// From the etag, or else the time of change; 0 where the server gives neither.
fn version(about: &ObjectMeta) -> u64 {
    let etag = about.e_tag.as_ref().map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
    let time = || Some(about.last_modified.timestamp()).filter(|&seconds| seconds != 0).map(|time| time.to_string());
    etag.or_else(time).map_or(0, |text| version_of(&text))
}

/// Never 0.
fn version_of(text: &str) -> u64 {
    let mut version = [0; 8];
    blake3::Hasher::new().update(text.as_bytes()).finalize_xof().fill(&mut version);
    u64::from_le_bytes(version).max(1)
}
