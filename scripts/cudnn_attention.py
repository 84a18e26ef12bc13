"""The graphs of scaled dot-product attention, as cuDNN recognises them.

Forward it is one operation since 9.13. Backward there is one as well, but not for the versions that matter (9.19 has the
descriptor and refuses the graph). The older way, nvidia-cudnn-frontend's, spells it out in 17 or 18 operations:

  D  = sum over channels of dO * O, times 1
  P  = exp(scale Q K^T - log-sum-exp)
  dV = P^T dO
  dS = scale P * (dO V^T - D)
  dK = dS^T Q
  dQ = dS K

What the last product writes says how: f32, converted by one more operation, is added up by all blocks at once in whatever
order they come; written in the format of the operands, dS goes through memory and every run gives the same bits.
"""

from cudnn_backend import Descriptor, Nodes


class Graphs(Nodes):
    """The graphs of one layer; queries, keys and values lie side by side in `[N, tokens, 3 channels]`."""

    def __init__(self, library, attention, dtype):
        super().__init__(library)
        self.a, self.dtype = attention, dtype
        self.q, self.k, self.v, self.dq, self.dk, self.dv = (self.heads(3) for _ in range(6))
        self.o, self.do, self.log_sums, self.scale = self.heads(1), self.heads(1), self.rows(), self.constant()

    def heads(self, parts, transposed=False, virtual=False):
        """`[N, heads, tokens, head_dim]` of a tensor in which so many lie side by side, or its last two sides changed over."""
        a, row = self.a, parts * self.a.heads * self.a.head_dim
        order = slice(None, None, -1 if transposed else 1)
        sides, strides = [a.tokens, a.head_dim][order], [row, 1][order]
        return self.tensor((a.batch, a.heads, *sides), (a.tokens * row, a.head_dim, *strides), self.dtype, virtual)

    def rows(self, virtual=False):
        """A number for each row of the scores."""
        a = self.a
        return self.tensor((a.batch, a.heads, a.tokens, 1), (a.heads * a.tokens, a.tokens, 1, 1), "FLOAT", virtual)

    def constant(self):
        return self.tensor((1,) * 4, (1,) * 4, "FLOAT", by_value=True)

    def packed(self, columns, virtual=True):
        """`[N, heads, tokens, columns]`, f32."""
        a = self.a
        sides, strides = (a.heads, a.tokens, columns), (a.heads * a.tokens * columns, a.tokens * columns, columns, 1)
        return self.tensor((a.batch, *sides), strides, "FLOAT", virtual)

    def turned(self):
        """`[N, heads, keys, queries]` of scores that lie by queries, in the format of the operands."""
        a = self.a
        sides, strides = (a.heads, a.tokens, a.tokens), (a.heads * a.tokens**2, a.tokens**2, 1, a.tokens)
        return self.tensor((a.batch, *sides), strides, self.dtype, virtual=True)

    def forward(self):
        return [self.operation("SDPA_FWD", self.common_roles()).final()]

    def backward_as_one(self):
        roles = {"DODDESC": self.do, "DQDESC": self.dq, "DKDESC": self.dk, "DVDESC": self.dv}
        return [self.operation("SDPA_BWD", self.common_roles() | roles).final()]

    def common_roles(self):
        roles = {"QDESC": self.q, "KDESC": self.k, "VDESC": self.v, "ODESC": self.o}
        return roles | {"STATSDESC": self.log_sums, "SCALEDESC": self.scale}

    def product(self, a, b, y):
        how = Descriptor(self.library, "MATMUL").set("MATMUL_COMP_TYPE", "DATA_TYPE", self.library["DATA_FLOAT"]).final()
        return self.operation("MATMUL", {"ADESC": a, "BDESC": b, "CDESC": y, "DESC": how}).final()

    def sum_of_rows(self, x, y):
        how = Descriptor(self.library, "REDUCTION").set("REDUCTION_COMP_TYPE", "DATA_TYPE", self.library["DATA_FLOAT"])
        how.set("REDUCTION_OPERATOR", "REDUCTION_OPERATOR_TYPE", self.library["REDUCE_TENSOR_ADD"])
        return self.operation("REDUCTION", {"XDESC": x, "YDESC": y, "DESC": how.final()}).final()

    def reshape(self, x, y):
        return self.operation("RESHAPE", {"XDESC": x, "YDESC": y}).final()

    def backward(self, repeatable=False):
        a = self.a
        k_transposed, v_transposed, losses = self.heads(3, transposed=True), self.heads(3, transposed=True), self.rows()
        weighted, summed = self.packed(a.head_dim), self.rows(virtual=True)
        scores, scaled, shifted, p, dp, centred, unscaled, ds = (self.packed(a.tokens) for _ in range(8))
        p_turned, ds_turned, k = self.turned(), self.turned(), self.heads(3, virtual=True)
        operations = [
            self.pointwise("MUL", self.do, weighted, self.o),
            self.sum_of_rows(weighted, summed),
            self.pointwise("MUL", summed, losses, self.constant()),
            self.product(self.q, k_transposed, scores),
            self.pointwise("MUL", scores, scaled, self.scale),
            self.pointwise("SUB", scaled, shifted, self.log_sums),
            self.pointwise("EXP", shifted, p),
            self.reshape(p, p_turned),
            self.product(p_turned, self.do, self.dv),
            self.product(self.do, v_transposed, dp),
            self.pointwise("SUB", dp, centred, losses),
            self.pointwise("MUL", centred, unscaled, p),
            self.pointwise("MUL", unscaled, ds, self.scale),
            self.reshape(ds, ds_turned),
            self.product(ds_turned, self.q, self.dk),
            self.reshape(k_transposed, k),
        ]
        if repeatable:
            return [*operations, self.product(ds, k, self.dq)]
        sums = self.packed(a.head_dim, virtual=False)
        return [*operations, self.product(ds, k, sums), self.pointwise("IDENTITY", sums, self.dq)]

    def repeatable_backward(self):
        return self.backward(repeatable=True)
