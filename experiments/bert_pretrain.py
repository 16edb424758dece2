"""BERT pretrained from scratch (Devlin et al., 2019) on any text set of TFDS, base or large: two runs, short rows first.

    jaxnlp train bert_pretrain --dataset NAME --data-dir gs://DIR --workdir gs://DIR/short
    jaxnlp train bert_pretrain --dataset NAME --data-dir gs://DIR --length 512 --pretrained gs://DIR/short
    jaxnlp plan bert_pretrain --topology v5e:4x4

The paper (its section 3.1 and appendix A.2): 256 rows, 900,000 steps of 128 tokens and then 100,000 of 512; Adam with
1e-4, 10,000 steps of warmup and a linear fall to zero over the whole million, decay 0.01, dropout 0.1. The second run's
schedule is the first's last tenth: from 1e-5 on, without a warmup.

    jaxnlp train bert_pretrain --optimizer lamb …          32,768 rows of 512 after 65,536 of 128

are the settings of You et al., 2020 (their section 4.1 and appendix), which train in 8,599 steps: 7,038 with rates up to
6e-4 * 2^4.5 …
"""
