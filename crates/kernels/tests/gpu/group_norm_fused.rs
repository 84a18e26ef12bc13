//! Group normalisation with what a GPU does in the same pass: an offset before, dropout behind, the gradient in two parts, and
//! its sums.

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::KernelError;
use ddpm_kernels::buffer::{DeferredSums, FlatBuffer, ParamGrads};
use ddpm_kernels::cuda::Gpu;
use ddpm_kernels::gemm::Write;
use ddpm_kernels::ops::dropout::{self, Dropout};
use ddpm_kernels::ops::group_norm::fused::{self, ChannelSums, Fused, Inputs, Mask, Wanted};
use ddpm_kernels::ops::group_norm::{self, GroupNorm};

use crate::common::{Both, FORMATS, Slots, assert_close, download, exactly, gpu, normals, tolerance};

const DROPOUT: Dropout = Dropout { probability: 0.25, seed: 3, layer: 2, step: 7, first_position: 5 };

/// What enters besides x.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Beside {
    Nothing,
    Offset,
    Modulation,
}

/// What a check varies.
#[derive(Clone, Copy, Debug)]
struct Setting {
    shape: [usize; 4],
    groups: usize,
    dtype: DType,
    beside: Beside,
    dropout: bool,
    /// Channels of the first part of x.
    joined: Option<usize>,
    /// Gradients from elsewhere.
    extra: usize,
    /// Channels whose sums are wanted.
    sums: Option<usize>,
    /// Added to the input's normals.
    mean: f64,
    /// What enters is some columns of a wider matrix, and so is its gradient.
    among_others: bool,
}

/// Columns before those in a wider matrix, and their number in all beside them.
const BEFORE: usize = 3;
const OTHERS: usize = 10;

/// `matrix` among the columns of a wider one.
fn among_others(matrix: &Tensor) -> Tensor {
    let (rows, columns) = matrix.dims2().unwrap();
    let beside = |columns: usize| Tensor::full(f32::NAN, (rows, columns), matrix.device()).unwrap();
    let beside = |columns: usize| beside(columns).to_dtype(matrix.dtype()).unwrap();
    let wide = Tensor::cat(&[&beside(BEFORE), matrix, &beside(OTHERS - BEFORE)], 1).unwrap();
    wide.narrow(1, BEFORE, columns).unwrap()
}

fn setting(shape: [usize; 4], groups: usize, dtype: DType) -> Setting {
    let (beside, sums) = (Beside::Offset, Some(shape[3]));
    Setting {
        shape,
        groups,
        dtype,
        beside,
        dropout: true,
        joined: None,
        extra: 0,
        sums,
        mean: 0.0,
        among_others: false,
    }
}

/// The operands of one check.
struct Operands {
    x: Both,
    weight: Both,
    bias: Both,
    beside: Option<Both>,
    /// On the device once more, among the columns of a wider matrix.
    wide: Option<Tensor>,
    dy: Both,
    extra: Vec<Both>,
    /// The dropout's factors, in f64.
    mask: Tensor,
}

impl Operands {
    fn new(s: &Setting) -> Self {
        let [n, _, _, c] = s.shape;
        let x = (normals(1, &s.shape, DType::F32).exact + s.mean).unwrap();
        let ones = Tensor::ones(&s.shape, DType::F32, &Device::Cpu).unwrap();
        let mask = if s.dropout { dropout::apply(&DROPOUT, &ones).unwrap() } else { ones };
        let beside = match s.beside {
            Beside::Nothing => None,
            Beside::Offset => Some(normals(4, &[n, c], s.dtype)),
            Beside::Modulation => Some(normals(4, &[n, 2 * c], s.dtype)),
        };
        Self {
            x: crate::common::both(&x.to_dtype(DType::F32).unwrap(), s.dtype),
            weight: normals(2, &[c], DType::F32),
            bias: normals(3, &[c], DType::F32),
            wide: beside.as_ref().map(|beside| among_others(&beside.device)),
            beside,
            dy: normals(5, &s.shape, s.dtype),
            extra: (0..s.extra as u64).map(|k| normals(6 + k, &s.shape, s.dtype)).collect(),
            mask: mask.to_dtype(DType::F64).unwrap(),
        }
    }

    /// The result and the gradients of x, weight, bias and what enters besides.
    fn twin(&self, s: &Setting, norm: &GroupNorm) -> (Tensor, Vec<Tensor>) {
        let mut inputs = vec![&self.x.exact, &self.weight.exact, &self.bias.exact];
        inputs.extend(self.beside.as_ref().map(|b| &b.exact));
        let twin = |t: &[Tensor]| {
            let y = match s.beside {
                Beside::Offset => {
                    let x = t[0].broadcast_add(&t[3].unsqueeze(1)?.unsqueeze(1)?)?;
                    group_norm::reference::forward(norm, &x, &t[1], &t[2], None)?
                }
                _ => group_norm::reference::forward(norm, &t[0], &t[1], &t[2], t.get(3))?,
            };
            y * &self.mask
        };
        exactly(&inputs, |_| self.dy.exact.clone(), twin)
    }

    fn inputs<'a>(&'a self, s: &Setting, step: Option<&'a Tensor>) -> Inputs<'a> {
        let beside = if s.among_others { self.wide.as_ref() } else { self.beside.as_ref().map(|b| &b.device) };
        let only = |kind: Beside| beside.filter(|_| s.beside == kind);
        // With the step in memory, the other one must not count.
        let dropout = Dropout { step: if step.is_some() { 0 } else { DROPOUT.step }, ..DROPOUT };
        Inputs {
            x: &self.x.device,
            weight: &self.weight.device,
            bias: &self.bias.device,
            modulation: only(Beside::Modulation),
            fused: Fused { offset: only(Beside::Offset), dropout: s.dropout.then_some(Mask { dropout, step }) },
        }
    }
}

/// Of two parts, the same as of the whole, and the whole.
#[track_caller]
fn check_joining(what: &str, norm: &GroupNorm, inputs: &Inputs<'_>, first: usize, (y, close): (&Tensor, f64)) {
    let (x, dim) = (inputs.x, inputs.x.rank() - 1);
    let part = |from: usize, count: usize| x.narrow(dim, from, count).unwrap().contiguous().unwrap();
    let parts = [part(0, first), part(first, x.dim(dim).unwrap() - first)];
    let whole = fused::room(x, x.dims()).unwrap();
    let inputs = Inputs { x: &whole, ..*inputs };
    let (found, _) = fused::forward_joining(norm, [&parts[0], &parts[1]], &inputs).unwrap();
    assert_eq!(download(&whole), download(x), "{what}: joined");
    assert_close(&format!("{what}: of two parts"), &found, y, close);
}

#[track_caller]
fn check(s: Setting) {
    let what = format!("{s:?}");
    let norm = GroupNorm { groups: s.groups, eps: 1e-5, silu: true };
    let o = Operands::new(&s);
    let (y, grads) = o.twin(&s, &norm);
    let of_f32 = 1e-4 + (1.0 + s.mean.abs()) * 4e-7;
    let close = tolerance(s.dtype).max(of_f32);
    let step = Tensor::new(&[DROPOUT.step as u32, 0], gpu()).unwrap();

    let inputs = o.inputs(&s, Some(&step));
    let (found, statistics) = fused::forward(&norm, &inputs).unwrap();
    assert_close(&what, &found, &y, close);
    let (again, _) = fused::forward(&norm, &o.inputs(&s, None)).unwrap();
    assert_eq!(download(&again), download(&found), "{what}: the step from memory");
    if let Some(first) = s.joined {
        check_joining(&what, &norm, &inputs, first, (&y, close));
    }

    let dx = o.extra.iter().fold(grads[0].clone(), |dx, e| (dx + &e.exact).unwrap());
    let channels = s.shape[3];
    let sums = s.sums.map(|len| dx.sum((0, 1, 2)).unwrap().narrow(0, 0, len).unwrap());
    let mut first: Option<Vec<f64>> = None;
    for write in [Write::Assign, Write::Add] {
        let slots = Slots::new(channels, channels, channels + 3);
        let time = o.wide.as_ref().filter(|_| s.among_others).map(|wide| among_others(&wide.zeros_like().unwrap()));
        let places = s.sums.map(|len| ChannelSums { at: slots.third(len), write });
        let wanted = Wanted { joined: s.joined, sums: places.into_iter().collect(), time };
        let extra = [0, 1].map(|k| o.extra.get(k).map(|e| &e.device));
        let found =
            fused::backward(&norm, &inputs, &statistics, (&o.dy.device, extra), &wanted, &slots.grads(write)).unwrap();
        let first_part = s.joined.unwrap_or(channels);
        assert_close(&format!("{what}: dx"), &found.dx, &dx.narrow(3, 0, first_part).unwrap(), close);
        assert_eq!(found.rest.is_some(), s.joined.is_some(), "{what}");
        if let Some(rest) = &found.rest {
            let exact = dx.narrow(3, first_part, channels - first_part).unwrap();
            assert_close(&format!("{what}: the rest of dx"), rest, &exact, close);
        }
        assert_eq!(found.modulation.is_some(), s.beside == Beside::Modulation, "{what}");
        assert_eq!(found.offset.is_some(), s.beside == Beside::Offset, "{what}");
        if let Some(beside) = found.modulation.as_ref().or(found.offset.as_ref()) {
            assert_close(&format!("{what}: gradient of what enters"), beside, &grads[3], close);
        }
        match &sums {
            Some(sums) => slots.check_three(&what, write, [&grads[1], &grads[2], sums], of_f32),
            None => slots.check(&what, write, &grads[1], &grads[2], of_f32),
        }
        let bits = [Some(&found.dx), found.rest.as_ref(), found.offset.as_ref()];
        let bits: Vec<f64> = bits.into_iter().flatten().flat_map(download).collect();
        assert_eq!(first.get_or_insert_with(|| bits.clone()), &bits, "{what}: the same bits every time");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_fused_group_norm_in_every_combination() {
    for dtype in FORMATS {
        for beside in [Beside::Nothing, Beside::Offset, Beside::Modulation] {
            for flags in 0..8 {
                let [dropout, elsewhere, parted] = [1, 2, 4].map(|bit| flags & bit != 0);
                let base = setting([2, 5, 7, 24], 8, dtype);
                let most = if dropout { 1 } else { 1 + flags / 4 };
                let extra = if elsewhere && beside != Beside::Offset { most } else { 0 };
                check(Setting { beside, dropout, extra, joined: parted.then_some(8), ..base });
                check(Setting { beside, dropout, extra, sums: None, among_others: true, ..base });
            }
        }
    }
}

/// Parts that wide loads do not fit, sums of the first channels alone, slices between them.
#[test]
#[ignore = "needs a GPU"]
fn gpu_fused_group_norm_at_odd_sizes() {
    for dtype in FORMATS {
        for (shape, groups, part) in [
            ([1, 13, 9, 3], 1, 2),
            ([3, 4, 4, 17], 1, 8),
            ([2, 5, 7, 48], 12, 32),
            ([2, 5, 7, 24], 3, 5),
            ([4, 1, 3, 32], 4, 24),
            ([1, 3, 2, 320], 1, 64),
            ([5, 3, 3, 512], 32, 256),
        ] {
            let base = setting(shape, groups, dtype);
            check(Setting { joined: Some(part), sums: Some(part), ..base });
            check(Setting {
                joined: Some(part),
                sums: Some(1),
                extra: 2,
                dropout: false,
                beside: Beside::Nothing,
                ..base
            });
            let beside = Beside::Modulation;
            check(Setting { sums: Some(part), extra: 2, beside, dropout: false, among_others: true, ..base });
        }
    }
}

/// The layers of the real models, with fewer images.
#[test]
#[ignore = "needs a GPU"]
fn gpu_fused_group_norm_of_real_layers() {
    for (shape, part) in [([2, 32, 32, 128], 128), ([2, 16, 16, 384], 256), ([3, 8, 8, 512], 256)] {
        let base = setting(shape, 32, DType::BF16);
        check(base);
        if part < shape[3] {
            let beside = Beside::Nothing;
            check(Setting { beside, joined: Some(part), sums: Some(part), extra: 2, dropout: false, ..base });
        }
    }
}

/// Too large for shared memory: the pixels are split, in two launches. In the last case only x fits, not dy.
#[test]
#[ignore = "needs a GPU"]
fn gpu_fused_group_norm_of_large_images() {
    for dtype in FORMATS {
        check(Setting { joined: Some(8), ..setting([1, 127, 129, 16], 4, dtype) });
        check(Setting { among_others: true, ..setting([2, 127, 129, 16], 4, dtype) });
        check(Setting { beside: Beside::Nothing, extra: 2, dropout: false, ..setting([2, 103, 101, 3], 1, dtype) });
    }
    check(setting([2, 61, 61, 264], 33, DType::F32));
}

/// An offset that takes a large mean away, and one that is small against it.
#[test]
#[ignore = "needs a GPU"]
fn gpu_fused_group_norm_of_a_large_mean() {
    for (shape, groups) in [([2, 13, 9, 24], 4), ([1, 127, 129, 16], 4)] {
        for mean in [1000.0, -1000.0] {
            check(Setting { mean, ..setting(shape, groups, DType::F32) });
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_fused_group_norm_refuses_what_does_not_fit() {
    let s = setting([2, 3, 3, 8], 2, DType::F32);
    let norm = GroupNorm { groups: 2, eps: 1e-5, silu: true };
    let o = Operands::new(&Setting { extra: 1, ..s });
    let inputs = o.inputs(&s, None);
    let (_, statistics) = fused::forward(&norm, &inputs).unwrap();
    let slots = Slots::new(8, 8, 16);
    let refused = |extra: Option<&Tensor>, wanted: &Wanted| {
        let extra = [None, extra];
        let found =
            fused::backward(&norm, &inputs, &statistics, (&o.dy.device, extra), wanted, &slots.grads(Write::Assign));
        found.unwrap_err().to_string()
    };
    let sums = |at| vec![ChannelSums { at, write: Write::Assign }];
    let extra = o.extra.first().map(|e| &e.device);
    assert!(refused(extra, &Wanted::default()).contains("extra"));
    let (dy, grads) = ((&o.dy.device, [extra, extra]), slots.grads(Write::Assign));
    let two = fused::backward(&norm, &inputs, &statistics, dy, &Wanted::default(), &grads);
    assert!(two.unwrap_err().to_string().contains("beside dropout"));
    for joined in [0, 8] {
        assert!(refused(None, &Wanted { joined: Some(joined), ..Wanted::default() }).contains("joined"));
    }
    for at in [0..9, 4096..4100] {
        assert!(refused(None, &Wanted { sums: sums(at), ..Wanted::default() }).contains("sums"));
    }
    let wrong = normals(9, &[2, 7], DType::F32).device;
    assert!(refused(None, &Wanted { time: Some(wrong.clone()), ..Wanted::default() }).contains("time's gradient"));
    let narrow = |channels: usize| normals(9, &[2, 3, 3, channels], DType::F32).device;
    for parts in [[narrow(8), narrow(1)], [narrow(4), narrow(3)]] {
        let error = fused::forward_joining(&norm, [&parts[0], &parts[1]], &inputs).unwrap_err();
        assert!(error.to_string().contains("other part"), "{error}");
    }
    let both = Inputs { modulation: Some(&normals(9, &[2, 16], DType::F32).device), ..inputs };
    assert!(fused::forward(&norm, &both).unwrap_err().to_string().contains("modulation"));
    let inputs = Inputs { fused: Fused { offset: Some(&wrong), dropout: None }, ..inputs };
    assert!(fused::forward(&norm, &inputs).unwrap_err().to_string().contains("offset"));
}

/// The second pass asks for more memory than the first, as a smaller micro-batch may that is split otherwise: the first must find
/// its own again when both are recorded.
#[test]
#[ignore = "needs a GPU"]
fn gpu_passes_of_unequal_size_are_recorded_as_they_ran() {
    const CHANNELS: usize = 8;
    // A stream of its own: what other tests queue meanwhile is not to be recorded.
    let device = ddpm_kernels::cuda::open(0).unwrap();
    let gpu = Gpu::of(&device).unwrap();
    let on_device = |seed, shape: &[usize]| {
        normals(seed, shape, DType::F32).exact.to_dtype(DType::F32).unwrap().to_device(&device).unwrap()
    };
    let (weight, bias) = (on_device(1, &[CHANNELS]), on_device(2, &[CHANNELS]));
    let norm = GroupNorm { groups: 2, eps: 1e-5, silu: true };
    let passes = [(1, Write::Assign), (3, Write::Add)].map(|(images, write)| {
        let shape = [images, 4, 4, CHANNELS];
        (on_device(3, &shape), on_device(4, &shape), write)
    });
    let buffer = FlatBuffer::zeros(2 * CHANNELS, &device).unwrap();
    let sums = DeferredSums::default();
    let run = || -> Result<(), KernelError> {
        for (x, dy, write) in &passes {
            let inputs = Inputs {
                x,
                weight: &weight,
                bias: &bias,
                modulation: None,
                fused: Fused { offset: None, dropout: None },
            };
            let (_, statistics) = fused::forward(&norm, &inputs)?;
            let places = ParamGrads::new(&buffer, 0..CHANNELS, CHANNELS..2 * CHANNELS, *write);
            let grads = ParamGrads { sums: Some(&sums), ..places };
            let wanted = Wanted { joined: None, sums: Vec::new(), time: None };
            fused::backward(&norm, &inputs, &statistics, (dy, [None, None]), &wanted, &grads)?;
            sums.settle(&buffer)?;
        }
        Ok(())
    };
    run().unwrap();
    let expected = buffer.to_vec().unwrap();
    let mut recording = gpu.record(run).unwrap();
    buffer.fill_zero(0..buffer.len()).unwrap();
    recording.replay().unwrap();
    assert_eq!(buffer.to_vec().unwrap(), expected);
    assert!(expected.iter().all(|gradient| *gradient != 0.0), "{expected:?}");
}
