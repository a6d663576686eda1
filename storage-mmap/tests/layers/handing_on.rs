//! For file layers that change a few calls and hand the others on, unchanged, to a layer or a file that they hold.

/// The named methods of `FileLayer` or `LayerFile`, handed on to a field.
macro_rules! hand_on {
    ($field:ident: $($method:ident),+ $(,)?) => { $(hand_on!(@$method $field);)+ };
    (@create_directory $field:ident) => {
        fn create_directory(&self, path: &str) -> std::io::Result<()> {
            self.$field.create_directory(path)
        }
    };
    (@list $field:ident) => {
        fn list(&self, path: &str) -> std::io::Result<Vec<String>> {
            self.$field.list(path)
        }
    };
    (@rename $field:ident) => {
        fn rename(&self, from: &str, to: &str) -> std::io::Result<()> {
            self.$field.rename(from, to)
        }
    };
    (@remove $field:ident) => {
        fn remove(&self, path: &str) -> std::io::Result<()> {
            self.$field.remove(path)
        }
    };
    (@remove_directory $field:ident) => {
        fn remove_directory(&self, path: &str) -> std::io::Result<()> {
            self.$field.remove_directory(path)
        }
    };
    (@sync_directory $field:ident) => {
        fn sync_directory(&self, path: &str) -> std::io::Result<()> {
            self.$field.sync_directory(path)
        }
    };
    (@lock $field:ident) => {
        fn lock(&self, path: &str) -> std::io::Result<Box<dyn LockGuard>> {
            self.$field.lock(path)
        }
    };
    (@disk_space $field:ident) => {
        fn disk_space(&self) -> std::io::Result<DiskSpace> {
            self.$field.disk_space()
        }
    };
    (@describe $field:ident) => {
        fn describe(&self) -> String {
            self.$field.describe()
        }
    };
    (@len $field:ident) => {
        fn len(&self) -> std::io::Result<u64> {
            self.$field.len()
        }
    };
    (@read_at $field:ident) => {
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
            self.$field.read_at(offset, buffer)
        }
    };
    (@write_at $field:ident) => {
        fn write_at(&self, offset: u64, pieces: &[&[u8]]) -> std::io::Result<()> {
            self.$field.write_at(offset, pieces)
        }
    };
    (@allocate $field:ident) => {
        fn allocate(&self, offset: u64, len: u64) -> std::io::Result<()> {
            self.$field.allocate(offset, len)
        }
    };
    (@data_from $field:ident) => {
        fn data_from(&self, offset: u64) -> std::io::Result<Option<std::ops::Range<u64>>> {
            self.$field.data_from(offset)
        }
    };
    (@read_ahead $field:ident) => {
        fn read_ahead(&self, range: std::ops::Range<u64>) {
            self.$field.read_ahead(range);
        }
    };
    (@set_len $field:ident) => {
        fn set_len(&self, len: u64) -> std::io::Result<()> {
            self.$field.set_len(len)
        }
    };
    (@sync_data $field:ident) => {
        fn sync_data(&self) -> std::io::Result<()> {
            self.$field.sync_data()
        }
    };
    (@drop_cache $field:ident) => {
        fn drop_cache(&self, from: u64) {
            self.$field.drop_cache(from);
        }
    };
    (@map $field:ident) => {
        fn map(&self, len: u64) -> std::io::Result<Arc<dyn MappedRegion>> {
            self.$field.map(len)
        }
    };
}
