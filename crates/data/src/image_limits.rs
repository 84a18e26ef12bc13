//! How large an image may be: what a header claims is compared before memory is taken for it.

/// `data.max_pixels` and `data.max_bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageLimits {
    /// Pixels of an image.
    pub max_pixels: u64,
    /// Bytes of an image, in its file and decoded.
    pub max_bytes: u64,
}

impl Default for ImageLimits {
    /// 16,384 x 16,384 pixels, and 256 MiB, which hold 89 megapixels of RGB. Each worker decodes one image at a time, and may copy it
    /// once to cut or turn it.
    fn default() -> Self {
        Self { max_pixels: 1 << 28, max_bytes: 256 << 20 }
    }
}

impl ImageLimits {
    /// Refuses a file of so many bytes.
    pub(crate) fn check_file(&self, bytes: u64) -> Result<(), String> {
        if bytes <= self.max_bytes {
            return Ok(());
        }
        Err(format!("a file of {bytes} bytes, more than data.max_bytes = {} allows", self.max_bytes))
    }

    /// Refuses an image of this width and height, which is decoded to so many bytes.
    pub(crate) fn check_image(&self, (width, height): (u32, u32), bytes: u64) -> Result<(), String> {
        let pixels = u64::from(width) * u64::from(height);
        if pixels > self.max_pixels {
            let most = self.max_pixels;
            return Err(format!("{width}x{height} are {pixels} pixels, more than data.max_pixels = {most} allows"));
        }
        if bytes > self.max_bytes {
            let most = self.max_bytes;
            return Err(format!(
                "{width}x{height} pixels take {bytes} bytes decoded, more than data.max_bytes = {most} allows"
            ));
        }
        Ok(())
    }

    /// Why a decoder gave up that may take only so much memory.
    pub(crate) fn exceeded(&self) -> String {
        format!("decoding takes more memory than data.max_bytes = {} allows", self.max_bytes)
    }
}
