'use strict';
// worst images: the slider sets the lowest score, from which the errors, F1 and the colours of the
// boxes follow. A card is shown if one error matches both the selected class and the selected type
const KINDS = ['classification', 'localisation', 'both', 'duplicate', 'background', 'missed'];
const MISSED = KINDS.indexOf('missed');
for (const gallery of document.querySelectorAll('.gallery')) {
  const [label, kind, score] = ['label', 'kind', 'score'].map((name) =>
    gallery.querySelector(`[name="${name}"]`));
  const cards = [...gallery.querySelectorAll('.card')];
  const objects = cards.map((card) => JSON.parse(card.dataset.objects));
  const detections = cards.map((card) => JSON.parse(card.dataset.detections));
  // the [type, class] pairs of the errors, and F1, as the report computes them for one threshold
  const examine = (index, lowest) => {
    const found = detections[index].filter(([, , own]) => own >= lowest);
    const missed = objects[index].filter(([, right, wrong]) => Math.max(right, wrong) < lowest);
    const mistakes = found.filter(([type]) => type >= 0).map(([type, name]) => [type, name]);
    const boxes = found.length + objects[index].length;
    const f1 = boxes ? (2 * (found.length - mistakes.length)) / boxes : 1;
    return [[...mistakes, ...missed.map(([name]) => [MISSED, name])], f1];
  };
  const update = () => {
    const lowest = Number(score.value);
    let shown = 0;
    cards.forEach((card, index) => {
      const [mistakes, f1] = examine(index, lowest);
      const counts = KINDS.map((name, type) => [mistakes.filter(([k]) => k === type).length, name]);
      card.querySelector('.f1').textContent = `F1 ${f1.toFixed(2)}`;
      card.querySelector('.tags').textContent =
        counts.filter(([count]) => count).map((pair) => pair.join(' ')).join(' · ') || 'no error';
      const all = kind.value === '' && label.value === '';
      card.hidden = !all && !mistakes.some(([k, l]) =>
        (kind.value === '' || k === Number(kind.value)) &&
        (label.value === '' || l === Number(label.value)));
      shown += !card.hidden;
    });
    gallery.querySelector('.shown').textContent = `${shown} of ${cards.length} images`;
    gallery.querySelector('.score').textContent = lowest.toFixed(2);
    for (const box of gallery.querySelectorAll('[data-score]')) {
      box.style.display = Number(box.dataset.score) < lowest ? 'none' : '';
    }
    for (const box of gallery.querySelectorAll('[data-found]')) {
      const wrong = Number(box.dataset.wrong) >= lowest ? box.dataset.kind : 'missed';
      const state = Number(box.dataset.found) >= lowest ? 'right' : wrong;
      box.firstElementChild.setAttribute('class', `box is-${state}`);
    }
  };
  label.addEventListener('change', update);
  kind.addEventListener('change', update);
  score.addEventListener('input', update);
  update();
}

// a click or the Enter key on a picture shows all pictures of its card enlarged
const dialog = document.querySelector('dialog');
for (const picture of document.querySelectorAll('.pair svg')) {
  const enlarge = () => {
    dialog.querySelector('.enlarged').replaceChildren(picture.closest('.card').cloneNode(true));
    dialog.showModal();
  };
  picture.tabIndex = 0;
  picture.addEventListener('click', enlarge);
  picture.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter') return;
    event.preventDefault(); // the same key would press the button of the dialog
    enlarge();
  });
}
dialog.querySelector('button').addEventListener('click', () => dialog.close());
dialog.addEventListener('click', (event) => event.target === dialog && dialog.close());

// narrow screens show each row of a wide table as a block, in which each cell has its column's name
for (const table of document.querySelectorAll('.scroll table')) {
  const names = [...table.querySelectorAll('thead th, thead td')].map((cell) => cell.textContent);
  table.classList.toggle('stack', names.length > 3);
  for (const row of table.querySelectorAll('tbody tr')) {
    [...row.cells].forEach((cell, place) => { cell.dataset.column = names[place]; });
  }
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
