"""LML, MSL, MSL+ATS and BEAR over dense logits with -inf masks.

Sources: arXiv 2504.04178 (MSL, ATS) and 2601.22925 v3 (BEAR), as their released codes compute them.

logits [positions, vocabulary], labels [positions], masks [positions, vocabulary] (true: a child in the trie); one row a target token.
"""
import math

import torch

ETA, ALPHA, LOW, HIGH, START = 0.25, 0.05, 1.5, 5.0, 1.5


def lml(logits, labels, masks):
    """Mean over all target tokens of -log softmax over the whole vocabulary."""
    return -torch.log_softmax(logits, -1)[torch.arange(len(labels)), labels].mean()


def msl(logits, labels, masks, tau):
    """Mean over all target tokens of -log softmax(f / tau) over the children; no factor tau in front."""
    z = logits.masked_fill(~masks, -math.inf) / tau
    return -torch.log_softmax(z, -1)[torch.arange(len(labels)), labels].mean()


def ats(logits, labels, masks, m, previous):
    """One step of MSL+ATS in the released order. Returns loss, temperature, statistics."""
    # 1. rows with more than one child; ATS rows by their number of children, whatever their depth
    counts = masks.sum(-1)
    rows = counts > 1
    chosen = rows & (counts == m)
    # 2. label mean; mean and unbiased variance over all valid logits, label included
    stats = {"ats_rows": int(chosen.sum()), "rows": int(rows.sum())}
    tau = previous
    c = math.log(m * ETA)
    if chosen.any():
        label = logits[torch.arange(len(labels)), labels][chosen]
        valid = logits[chosen][masks[chosen]]
        pos_mu, neg_mu, neg_var = label.mean(), valid.mean(), valid.var(unbiased=True)
        stats |= {"pos_mu": pos_mu.item(), "neg_mu": neg_mu.item(), "neg_var": neg_var.item()}
        # m * eta <= 1 has no such temperature: the released code would divide by zero or a negative number. itemlm keeps the previous one.
        if c > 0:
            # 3. the plus root
            d = pos_mu - neg_mu
            disc = d * d - 2 * c * neg_var
            raw = (d + torch.clamp(disc, min=0).sqrt()) / (2 * c)
            # 4. clamp, detach; 5. moving average
            clamped = raw.clamp(LOW, HIGH).detach().item()
            tau = (1 - ALPHA) * previous + ALPHA * clamped
            stats |= {"discriminant": disc.item(), "raw_temperature": raw.item(), "clamped_temperature": clamped}
    # 7. tau in front, mean over the rows with more than one child only
    z = logits[rows].masked_fill(~masks[rows], -math.inf) / tau
    loss = tau * -torch.log_softmax(z, -1)[torch.arange(int(rows.sum())), labels[rows]].mean()
    return loss, tau, stats


def bear(logits, labels, masks, beams, tau=1.0, lam=0.25, xi=2.75):
    """Weighted mean of MSL's terms over the rows with more than one child.

    A row's weight is 1 + lam * sigmoid((ln p_label - ln q) / xi), without a gradient; q is the beams-th largest
    probability among the children, the smallest one where there are fewer.
    """
    rows = masks.sum(-1) > 1
    log_p = torch.log_softmax(logits[rows].masked_fill(~masks[rows], -math.inf) / tau, -1)
    of_labels = log_p[torch.arange(int(rows.sum())), labels[rows]]
    edge = torch.stack([p[m].sort(descending=True).values[:beams][-1] for p, m in zip(log_p, masks[rows])])
    weights = (1 + lam * torch.sigmoid((of_labels - edge) / xi)).detach()
    return -(weights / weights.sum() * of_labels).sum()
