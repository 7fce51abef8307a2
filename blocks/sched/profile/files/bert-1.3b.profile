llm-blocks profile 1
model: BERT-1.3B
device: V100-SXM2-16GB
published: AlpaServe (Li et al., 2023): stage latencies of its profiling database (alpa-projects/mms, a82bdb1, alpa_serve/profiling_results.pkl), 15 configurations at batch 1, 1 x 1 and 8 x 1 at batches 2 to 16 too
derived: weight_bytes: its figure of 1.313 read as billions of parameters, 2 bytes each, cut evenly over the devices
note: hidden size 2048, 24 layers, 32 heads, sequences of 2048 tokens; the paper's text gives 2.4 GB and 151 ms

configuration 1 x 1
weight_bytes: 2626000000
batch 1: 0.09894
batch 2: 0.1146
batch 4: 0.2203
batch 8: 0.426
batch 16: 0.8355

configuration 1 x 2
weight_bytes: 1313000000 1313000000
batch 1: 0.04816 0.04991

configuration 1 x 4
weight_bytes: 656500000 656500000 656500000 656500000
batch 1: 0.02596 0.02381 0.02395 0.0269

configuration 1 x 8
weight_bytes: 328250000 328250000 328250000 328250000 328250000 328250000 328250000 328250000
batch 1: 0.01416 0.01233 0.01226 0.01251 0.0125 0.01236 0.01238 0.01558

configuration 2 x 1
weight_bytes: 1313000000
batch 1: 0.06712

configuration 2 x 2
weight_bytes: 656500000 656500000
batch 1: 0.03201 0.03168

configuration 2 x 4
weight_bytes: 328250000 328250000 328250000 328250000
batch 1: 0.01732 0.01556 0.01533 0.01667

configuration 2 x 8
weight_bytes: 164125000 164125000 164125000 164125000 164125000 164125000 164125000 164125000
batch 1: 0.00978 0.00922 0.00879 0.00847 0.01063 0.0083 0.00803 0.01003

configuration 4 x 1
weight_bytes: 656500000
batch 1: 0.04053

configuration 4 x 2
weight_bytes: 328250000 328250000
batch 1: 0.02075 0.02029

configuration 4 x 4
weight_bytes: 164125000 164125000 164125000 164125000
batch 1: 0.01007 0.00969 0.01259 0.01038

configuration 4 x 8
weight_bytes: 82062500 82062500 82062500 82062500 82062500 82062500 82062500 82062500
batch 1: 0.00618 0.00601 0.00729 0.00542 0.00654 0.00559 0.00793 0.00622

configuration 8 x 1
weight_bytes: 328250000
batch 1: 0.02986
batch 2: 0.0379
batch 4: 0.0602
batch 8: 0.1005
batch 16: 0.1835

configuration 8 x 2
weight_bytes: 164125000 164125000
batch 1: 0.01542 0.0178

configuration 8 x 4
weight_bytes: 82062500 82062500 82062500 82062500
batch 1: 0.00802 0.01 0.00853 0.01106
