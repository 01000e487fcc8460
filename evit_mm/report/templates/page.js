'use strict';
// worst images: show a card if one mistake matches both the selected class and the selected type
for (const gallery of document.querySelectorAll('.gallery')) {
  const [label, kind, score] = ['label', 'kind', 'score'].map((name) =>
    gallery.querySelector(`[name="${name}"]`));
  const cards = [...gallery.querySelectorAll('.card')];
  const filter = () => {
    let shown = 0;
    for (const card of cards) {
      const mistakes = card.dataset.mistakes.split(' ').map((pair) => pair.split(':'));
      card.hidden = !mistakes.some(([k, l]) =>
        (kind.value === '' || k === kind.value) && (label.value === '' || l === label.value));
      shown += !card.hidden;
    }
    gallery.querySelector('.shown').textContent = `${shown} of ${cards.length} images`;
  };
  const threshold = () => {
    gallery.querySelector('.score').textContent = Number(score.value).toFixed(2);
    for (const box of gallery.querySelectorAll('[data-score]')) {
      box.style.display = Number(box.dataset.score) < Number(score.value) ? 'none' : '';
    }
    for (const box of gallery.querySelectorAll('[data-found]')) { // the score of the matched detection
      const found = Number(box.dataset.found) >= Number(score.value);
      box.firstElementChild.classList.toggle('is-right', found);
      box.firstElementChild.classList.toggle('is-missed', !found);
    }
  };
  label.addEventListener('change', filter);
  kind.addEventListener('change', filter);
  score.addEventListener('input', threshold);
  filter();
  threshold();
}

// contents: highlight the visible section
const links = new Map([...document.querySelectorAll('nav a')].map((a) => [a.hash.slice(1), a]));
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((e) => e.isIntersecting)) {
    links.forEach((link) => link.removeAttribute('aria-current'));
    links.get(entry.target.id)?.setAttribute('aria-current', 'true');
  }
}, { rootMargin: '0px 0px -70% 0px' });
document.querySelectorAll('section[id]').forEach((section) => seen.observe(section));
