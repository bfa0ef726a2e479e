//! Writing type information (BTF).

/// Adds types one by one. Each method returns the id of the new type.
#[derive(Debug)]
pub(super) struct BtfWriter {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl BtfWriter {
    pub(super) fn new() -> BtfWriter {
        // The first name is the empty one, for types without a name.
        BtfWriter { types: Vec::new(), strings: vec![0], count: 0 }
    }

    pub(super) fn int(&mut self, name: &str, size: u32) -> u32 {
        let name = self.name(name);
        self.add(name, 1 << 24, size, &[size * 8])
    }

    /// Each member has a name, which may be empty, a type, and an offset in bytes.
    pub(super) fn structure(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let name = self.name(name);
        let words: Vec<u32> =
            members.iter().flat_map(|(name, of, at)| [self.name(name), *of, at * 8]).collect();
        self.add(name, 4 << 24 | len(members.len()), size, &words)
    }

    /// A function that takes and returns a number of this type, if it is global; else its parameters are not described.
    pub(super) fn function(&mut self, name: &str, number: u32, is_global: bool) -> u32 {
        let parameter = [self.name("number"), number];
        let parameters: &[u32] = if is_global { &parameter } else { &[] };
        let prototype = self.add(0, 13 << 24 | len(parameters.len() / 2), number, parameters);
        let name = self.name(name);
        self.add(name, 12 << 24 | u32::from(is_global), prototype, &[])
    }

    /// The whole file.
    pub(super) fn finish(&self) -> Vec<u8> {
        let (types, strings) = (len(self.types.len()), len(self.strings.len()));
        let mut file = 0xeb9f_u16.to_ne_bytes().to_vec();
        file.extend([1, 0]);
        file.extend([24, 0, types, types, strings].iter().flat_map(|word| word.to_ne_bytes()));
        file.extend(&self.types);
        file.extend(&self.strings);
        file
    }

    fn add(&mut self, name: u32, info: u32, size_or_type: u32, rest: &[u32]) -> u32 {
        let words = [name, info, size_or_type].into_iter().chain(rest.iter().copied());
        self.types.extend(words.flat_map(u32::to_ne_bytes));
        self.count += 1;
        self.count
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = len(self.strings.len());
        self.strings.extend(name.bytes().chain([0]));
        at
    }
}

fn len(len: usize) -> u32 {
    u32::try_from(len).expect("a small number")
}

/// What only the kernel's own types have.
#[cfg(test)]
impl BtfWriter {
    pub(super) fn pointer(&mut self, to: u32) -> u32 {
        self.add(0, 2 << 24, to, &[])
    }

    pub(super) fn array(&mut self, of: u32, len: u32) -> u32 {
        self.add(0, 3 << 24, 0, &[of, of, len])
    }

    pub(super) fn values(&mut self, values: &[(&str, u32)]) -> u32 {
        let words: Vec<u32> = values.iter().flat_map(|(name, value)| [self.name(name), *value]).collect();
        self.add(0, 6 << 24 | len(values.len()), 4, &words)
    }

    pub(super) fn typedef(&mut self, name: &str, of: u32) -> u32 {
        let name = self.name(name);
        self.add(name, 8 << 24, of, &[])
    }

    pub(super) fn prototype(&mut self, parameters: &[u32]) -> u32 {
        let words: Vec<u32> = parameters.iter().flat_map(|of| [0, *of]).collect();
        self.add(0, 13 << 24 | len(parameters.len()), 0, &words)
    }
}
