'use strict';
// A tap or the pointer on a point tells its runs. Without this script the
// browser shows the same words, from <title>, to a pointer alone.
const tip = document.getElementById('tip');
let pinned = null;

function show(point) {
  tip.textContent = point.dataset.tip;
  if (point.dataset.link) {
    const link = document.createElement('a');
    link.href = point.dataset.link;
    link.textContent = 'its row in the table';
    link.addEventListener('click', hide);
    tip.append(link);
  }
  tip.hidden = false;
  place(point.getBoundingClientRect());
}

function place(box) {
  const edge = document.documentElement.clientWidth - tip.offsetWidth - 12;
  const left = Math.min(box.left + box.width / 2 + 10, edge);
  const above = box.top - tip.offsetHeight - 8;
  const top = above > 0 ? above : box.bottom + 8;
  tip.style.left = `${Math.max(12, left) + scrollX}px`;
  tip.style.top = `${top + scrollY}px`;
}

function hide() {
  tip.hidden = true;
  pinned = null;
}

for (const point of document.querySelectorAll('.pt')) {
  const title = point.querySelector('title');
  point.dataset.tip = title.textContent;
  point.setAttribute('aria-label', title.textContent);
  title.remove();
  point.addEventListener('pointerenter', () => pinned || show(point));
  point.addEventListener('pointerleave', () => pinned || hide());
  point.addEventListener('focus', () => show(point));
  point.addEventListener('click', (event) => {
    event.stopPropagation();
    pinned = point;
    show(point);
  });
}
document.addEventListener('click', (event) => tip.contains(event.target) || hide());
document.addEventListener('keydown', (event) => event.key === 'Escape' && hide());
